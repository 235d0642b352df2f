"""The robustness audit: closed forms, what it notes, and that it goes on where it was killed."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from weathered.attacks.build import build_attacks, parse_length
from weathered.audit.pieces import Pieces, duration
from weathered.audit.robustness import audit_robustness, curve_budgets
from weathered.cli import app
from weathered.core.errors import DataError, SpecError
from weathered.data.dataset import Dataset


def plane() -> nn.Sequential:
    """Two classes by the sum of four pixels."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
        model[1].bias.copy_(torch.tensor([-2.0, 0.0]))
    return model


def images(size: int = 300) -> Dataset:
    # far from 0 and 1, so that nothing is cut off
    pixels = torch.randint(70, 186, (size, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = (pixels.flatten(1).double().sum(1) < 2 * 255).long()
    labels[:20] = 1 - labels[:20]
    return Dataset.of(pixels, labels, name="planes")


def distances(data: Dataset) -> np.ndarray:
    """How far in Linf the plane is from each image; less than 0 where the label is wrong."""
    gap = data.floats(torch.arange(len(data))).flatten(1).double().sum(1) - 2
    return (torch.where(data.labels == 0, gap, -gap) / 4).numpy()


def test_a_linear_network_has_its_closed_form():
    data = images()
    attacks = build_attacks(["fgsm", "pgd:steps=5", "apgd-ce:steps=5"], 0.05, "linf")
    result = audit_robustness(plane(), data, attacks, seed=0)
    room = distances(data)
    clear = np.abs(room - 0.05) > 1e-6
    for name in ("right_under_fgsm", "right_under_apgd-ce:steps=5", "robust"):
        assert np.array_equal(result.per_sample[name][clear], (room > 0.05)[clear])
    assert result.summary["clean accuracy"].value == pytest.approx(280 / 300)
    assert result.summary["robust accuracy"].value == pytest.approx((room > 0.05).mean(), abs=0.004)
    assert result.summary["robust accuracy"].n == 300
    budgets = curve_budgets(0.05, "linf", 4)
    assert budgets == pytest.approx([0.0125, 0.025, 0.05, 0.1, 0.2, 0.5])
    edges = np.array([*budgets, math.inf])
    expected = np.where(room < 0, 0.0, edges[np.searchsorted(edges[:-1], np.maximum(room, 0))])
    far = np.abs(room[:, None] - edges[:-1]).min(1) > 1e-6
    assert np.array_equal(result.per_sample["smallest_epsilon"][far], expected[far])
    (line,) = result.figures[0].series
    assert list(line.y) == sorted(line.y, reverse=True)
    assert line.y[-1] == pytest.approx((room > 0.5).mean(), abs=0.004)


def test_nothing_is_lost_without_a_budget_and_robust_is_right_under_all():
    data = images()
    result = audit_robustness(plane(), data, build_attacks(["pgd:steps=2", "square:queries=3"], 0.0, "linf"), seed=0)
    assert {round(estimate.value, 9) for estimate in result.summary.values()} == {round(280 / 300, 9)}
    weak = audit_robustness(
        plane(), data, build_attacks(["pgd:steps=1,step_size=0.01", "square:queries=2"], 0.08, "linf"), seed=0
    )
    columns = [column for name, column in weak.per_sample.items() if name.startswith("right_under")]
    assert np.array_equal(weak.per_sample["robust"], columns[0] & columns[1])
    assert 0 < weak.per_sample["robust"].sum() < min(column.sum() for column in columns)


class Stepped(nn.Module):
    """The plane behind rounded pixels, so that there is no gradient."""

    def __init__(self):
        super().__init__()
        self.inner = plane()

    def forward(self, x):
        return self.inner(torch.round(x * 100) / 100 + 0 * x)


def test_hidden_gradients_are_said():
    attacks = build_attacks(["fgsm", "square:queries=40"], 0.1, "linf")
    hidden = audit_robustness(Stepped(), images(), attacks, seed=0).notes
    assert any("needs no gradient, turned" in note for note in hidden)
    assert any("does not work on this model" in note for note in hidden)
    plain = audit_robustness(plane(), images(), attacks, seed=0).notes
    assert not any("needs no gradient" in note or "does not work" in note for note in plain)
    assert any("upper bound" in note for note in plain)


def test_it_goes_on_where_it_was_stopped_and_finds_the_same(tmp_path):
    data, attacks = images(600), build_attacks(["pgd:steps=3", "square:queries=5"], 0.1, "linf")
    whole = audit_robustness(plane(), data, attacks, seed=0).to_json()
    for stop in (1, 4, 8):
        seen: list[int] = []

        def watch(what: str, done: int, of: int, stop=stop, seen=seen) -> None:
            seen.append(done)
            if done == stop:
                raise KeyboardInterrupt

        pieces = Pieces(tmp_path / str(stop))
        with pytest.raises(KeyboardInterrupt):
            audit_robustness(plane(), data, attacks, 0, pieces, watch)
        assert len(list((tmp_path / str(stop)).iterdir())) == stop
        # a piece that was cut short is made again
        next((tmp_path / str(stop)).iterdir()).write_bytes(b"short")
        again = audit_robustness(plane(), data, attacks, 0, pieces, None).to_json()
        assert json.dumps(again) == json.dumps(whole)


def test_pieces_that_are_there_are_not_made_again(tmp_path):
    pieces, calls = Pieces(tmp_path / "p"), []

    def make():
        calls.append(0)
        return {"x": torch.arange(3)}

    assert pieces.get("a", make)["x"].tolist() == pieces.get("a", make)["x"].tolist() == [0, 1, 2]
    assert len(calls) == 1
    assert "a" in pieces
    assert "b" not in pieces
    Pieces(None).get("a", make)
    assert len(calls) == 2


def test_pieces_are_removed_with_the_result_and_kept_with_an_error(tmp_path):
    def make():
        return {"x": torch.arange(3)}

    one, other = Pieces(tmp_path / "unfinished" / "one"), Pieces(tmp_path / "unfinished" / "other")
    other.get("a", make)
    one.get("a", make)
    one.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert "a" in one
    with one:
        assert "a" in one
    assert not (tmp_path / "unfinished" / "one").exists()
    assert "a" in other
    with other:
        pass
    assert not (tmp_path / "unfinished").exists()


def test_durations_are_words():
    assert [duration(s) for s in (1, 70, 600, 9000)] == ["under a minute", "a minute", "10 minutes", "2.5 hours"]


def test_tables_and_mixed_budgets_are_refused():
    rows = Dataset.of(torch.rand(4, 3), torch.zeros(4).long(), name="rows")
    with pytest.raises(DataError, match="rows: the robustness audit needs at least one image"):
        audit_robustness(nn.Linear(3, 2), rows, build_attacks(["fgsm"], 0.1, "linf"), 0)
    with pytest.raises(ValueError, match="at least one attack"):
        audit_robustness(plane(), images(), {}, 0)


@pytest.mark.parametrize(
    ("specs", "epsilon", "norm", "message"),
    [
        (["pdg"], 0.1, "linf", "no attack 'pdg'. Did you mean 'pgd'?"),
        (["mixup"], 0.1, "linf", "no attack 'mixup'"),
        ([], 0.1, "linf", "at least one attack"),
        (["pgd:stpes=3"], 0.1, "linf", "pgd has no option 'stpes'. Did you mean 'steps'?"),
        (["pgd:epsilon=0.3"], 0.1, "linf", "pgd has no option 'epsilon'"),
        (["pgd:steps=0"], 0.1, "linf", "pgd: steps must be at least 1, got 0"),
        (["pgd", "pgd"], 0.1, "linf", "the attack pgd is there twice"),
        (["square", "attack-ensemble"], 0.1, "linf", "square is there twice (once in attack-ensemble)"),
        (["attack-ensemble:steps=3"], 0.1, "linf", "name its attacks instead: apgd-ce, apgd-t, square"),
        (["square"], 0.1, "l2", "Square works in the norm linf"),
        (["pgd"], 8, "linf", "epsilon must be in [0, 1]"),
        (["pgd"], 0.1, "l1", "norm must be one of linf, l2"),
    ],
)
def test_attacks_that_do_not_fit_are_one_sentence(specs, epsilon, norm, message):
    with pytest.raises(SpecError) as error:
        build_attacks(specs, epsilon, norm)
    assert message in str(error.value)


def test_the_bundle_stands_for_its_parts_and_leaves_out_what_has_no_such_norm():
    assert list(build_attacks(["fgsm", "attack-ensemble"], 0.1, "linf")) == ["fgsm", "apgd-ce", "apgd-t", "square"]
    assert list(build_attacks(["attack-ensemble"], 0.5, "l2")) == ["apgd-ce", "apgd-t"]


def test_lengths_are_numbers_or_fractions():
    assert parse_length("8/255") == 8 / 255
    assert parse_length("0.1") == 0.1
    for wrong in ("8/0", "eight", "1/2/3"):
        with pytest.raises(SpecError, match="write a number such as 0.1, or a fraction such as 8/255"):
            parse_length(wrong)


def test_the_command_attacks_a_finished_run_and_tidies_up(tmp_path):
    invoke = CliRunner().invoke
    trained = invoke(app, ["train", "digits", "--limit", "300", "--epochs", "2", "--out", str(tmp_path)])
    assert trained.exit_code == 0
    (run,) = tmp_path.glob("*/run.json")
    asked = ["audit", str(run.parent), "--audits", "robustness", "--attacks", "pgd:steps=2,square:queries=4"]
    done = invoke(app, [*asked, "--epsilon", "26/255", "--limit", "30"])
    assert done.exit_code == 0, done.output
    assert "robustness: at most" in done.output
    kept = json.loads((run.parent / "audit.json").read_text())["robustness"]
    assert "epsilon 0.102" in kept["tables"][0]["title"]
    assert [row[0] for row in kept["tables"][0]["rows"]] == ["none", "pgd:steps=2", "square:queries=4", "all of them"]
    assert not (run.parent / "unfinished").exists()
    first = (run.parent / "audit.json").read_bytes()
    assert invoke(app, [*asked, "--epsilon", "26/255", "--limit", "30"]).exit_code == 0
    assert (run.parent / "audit.json").read_bytes() == first
    for options, message in (
        (["--audits", "accuracy", "--epsilon", "0.1"], "would do nothing without the audit robustness"),
        (["--audits", "robustness", "--norm", "l3"], "norm must be one of linf, l2"),
        (["--audits", "robustness", "--attacks", "pgdd"], "Did you mean 'pgd'?"),
    ):
        refused = invoke(app, ["audit", str(run.parent), *options])
        assert isinstance(refused.exception, SpecError)
        assert message in str(refused.exception)
