"""Groups from a column of a file to the loss, the audit and the report."""

import json

import numpy as np
import pytest


@pytest.fixture
def table(tmp_path):
    """Two sites; at the rare one the label follows the second feature in place of the first."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 3))
    rare = rng.random(600) < 0.15
    label = np.where(rare, x[:, 1] > 0, x[:, 0] > 0).astype(int)
    lines = ["a,b,c,site,label"]
    lines += [
        ",".join([*(f"{v:.4f}" for v in row), "north" if r else "south", str(y)])
        for row, r, y in zip(x, rare, label, strict=True)
    ]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    return "table.csv"


SMALL = ("--model", "mlp", "--epochs", "4", "--out", "runs")


def test_the_rare_group_is_the_worst_and_the_report_shows_it(weathered, table, tmp_path):
    code, out, err = weathered("train", table, *SMALL, "--group-column", "site")
    assert code == 0, err
    assert "worst group accuracy" in out
    run = next((tmp_path / "runs").glob("*/run.json")).parent
    audit = json.loads((run / "audit.json").read_text())["groups"]
    assert "The worst group is 'north'" in audit["notes"][0]
    assert [row[0] for row in audit["tables"][0]["rows"]] == ["north", "south"]
    code, _, err = weathered("audit", str(run), "--audits", "groups,selective")
    assert code == 0, err
    code, _, err = weathered("report", str(run), "-o", "report.html")
    assert code == 0, err
    text = (tmp_path / "report.html").read_text()
    assert "Reliability by group" in text
    assert "Risk and coverage" in text


def test_a_loss_by_group_runs_by_its_name(weathered, table):
    code, _, err = weathered("train", table, *SMALL, "--group-column", "site", "--use", "group-vs-loss:gamma=0.2")
    assert code == 0, err


def test_what_is_missing_is_said(weathered, table):
    code, _, err = weathered("train", table, *SMALL, "--not-features", "site", "--use", "group-vs-loss")
    assert code == 2
    assert "--group-column" in err
    code, _, err = weathered("train", table, *SMALL, "--group-column", "sight")
    assert code == 2
    assert "site" in err
    code, _, err = weathered("train", "digits", "--limit", "100", "--epochs", "1", "--out", "plain")
    assert code == 0, err
    code, _, err = weathered("audit", "plain", "--audits", "groups")
    assert code == 2


def test_a_group_without_a_training_row_is_named(weathered, table, tmp_path):
    lines = (tmp_path / table).read_text().splitlines()
    part = ["part", *("test" if ",north," in line else "train" for line in lines[1:])]
    (tmp_path / "t.csv").write_text("\n".join(f"{line},{p}" for line, p in zip(lines, part, strict=True)) + "\n")
    chosen = ("--group-column", "site", "--rows", "part=train", "--test-rows", "part=test")
    code, _, err = weathered("train", "t.csv", *SMALL, *chosen, "--use", "group-vs-loss")
    assert code == 2
    assert "group-vs-loss: every group needs at least one training sample, group 'north' has 0" in err


def test_groups_in_the_test_set_alone_are_audited_without_training_counts(weathered, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 2)), rng.integers(0, 2, 60)
    np.savez(
        tmp_path / "g.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:], group_test=np.arange(20) % 2
    )
    code, out, err = weathered("train", "npz:g.npz", "--model", "mlp", "--epochs", "1", "--out", "runs")
    assert code == 0, err
    assert "worst group accuracy" in out


def test_the_label_audit_of_data_with_groups_and_rows(weathered, table, tmp_path):
    text = (tmp_path / table).read_text().splitlines()
    split = ["part", *("train" if i % 3 else "test" for i in range(len(text) - 1))]
    (tmp_path / "t.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(text, split, strict=True)) + "\n")
    chosen = ("--group-column", "site", "--rows", "part=train", "--test-rows", "part=test")
    code, _, err = weathered("train", "t.csv", "--model", "mlp", "--epochs", "1", "--out", "runs", *chosen)
    assert code == 0, err
    run = next((tmp_path / "runs").glob("*/run.json")).parent
    code, _, err = weathered("audit", str(run), "--audits", "labels", "--folds", "2")
    assert code == 0, err
