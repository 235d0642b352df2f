"""Audits over views: figures of their own beside those of the images alone, from averaged probabilities."""

import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from weathered.audit.options import AuditOptions
from weathered.audit.over_views import OVER_VIEWS, make_audit
from weathered.core.errors import SpecError
from weathered.loaded_run import load_run
from weathered.nn.averaged_views import identity, named_views

FAST = ("--epochs", "1", "--limit", "200", "--json")


def trained(weathered, tmp_path, *arguments):
    code, out, err = weathered("train", *arguments, *FAST)
    assert code == 0, err
    return tmp_path / json.loads(out)["run"]


def test_figures_over_views_stand_beside_those_without(weathered, tmp_path):
    run = trained(weathered, tmp_path, "digits", "--model", "cnn_small:width=8")
    before = json.loads((run / "audit.json").read_text())
    code, out, err = weathered("audit", str(run), "--views", "shift,flip", "--json")
    assert code == 0, err
    names = {f"{audit} over views flip+shift" for audit in ("accuracy", "calibration", "selective")}
    assert set(json.loads(out)) == names
    kept = json.loads((run / "audit.json").read_text())
    assert set(kept) == set(before) | names
    assert all(kept[name] == audit for name, audit in before.items())
    assert kept["calibration"]["summary"] != kept["calibration over views flip+shift"]["summary"]
    assert "means over 6 views of each image: itself and flip, shift" in out
    code, _, err = weathered("report", str(run), "-o", "report.html")
    assert code == 0, err
    assert "accuracy over views flip+shift" in (tmp_path / "report.html").read_text()


def test_a_loaded_run_averages_probabilities_at_the_scale_of_its_loss(weathered, tmp_path):
    run = load_run(trained(weathered, tmp_path, "digits", "--model", "cnn_small:width=8", "--use", "ldam"))
    test = run.splits.test
    alone = run.predict(test)
    assert torch.equal(replace(run, views=(identity,)).predict(test), alone)
    flipped = test.replace(inputs=type(test).of(test.inputs.fetch(torch.arange(len(test))).flip(3), test.labels).inputs)
    expected = (alone.softmax(1) + run.predict(flipped).softmax(1)) / 2
    assert_close(replace(run, views=named_views(["flip"])).predict(test).softmax(1), expected, atol=1e-6, rtol=0)
    assert not torch.allclose(expected, alone.softmax(1), atol=1e-3)
    options = AuditOptions(views=("flip",))
    hits = float((expected.argmax(1) == test.labels).double().mean())
    assert make_audit([run], "accuracy", options).summary["accuracy"].value == pytest.approx(hits)
    with pytest.raises(SpecError, match="--views would do nothing to the audits corruption"):
        make_audit([run], "corruption", options)


def test_mistakes(weathered, tmp_path):
    run = str(trained(weathered, tmp_path, "digits", "--model", "mlp:width=16"))
    rows = ["a,b,label"] + [f"{i},{i % 3},{i % 2}" for i in range(100)]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    table = str(trained(weathered, tmp_path, "t.csv", "--model", "mlp:width=16"))
    for arguments, message in (
        ((run, "--views", "flop"), "no view 'flop'. Did you mean 'flip'? There are: flip, shift, shift-2."),
        ((run, "--views", ""), "no view ''."),
        (
            (run, "--views", "flip", "--audits", "accuracy,ood"),
            f"audits ood; with it --audits may name {OVER_VIEWS[0]}",
        ),
        ((table, "--views", "flip"), "only images have views, but the data are a table"),
    ):
        code, out, err = weathered("audit", *arguments)
        assert code == 2
        assert message in err
        assert err.strip().count("\n") == 0
        assert not out
