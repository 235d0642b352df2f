"""The certified audit of a network of Linf distances: counted by hand, and from the command line."""

import json
import math

import pytest
import torch

from weathered.audit.certified_linf import LEVELS, audit_certified_linf
from weathered.certify.interval_bounds import IntervalBounds
from weathered.certify.linf_margin import LinfMargin
from weathered.core.errors import DataError, Incompatible
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.nn.build import build_model
from weathered.nn.linf_net import LinfNetwork
from weathered.procedures.linf_distance_net import LinfDistanceNet

pytestmark = pytest.mark.filterwarnings("ignore:.*steps are at p = infinity")

TRAIN = (
    *("train", "digits", "--limit", "150", "--model", "linf-net:width=16,depth=2", "--use", "linf-distance-net"),
    *("--optimizer", "adam", "--lr", "0.03", "--weight-decay", "0", "--epochs", "3", "--out", "runs"),
)


@pytest.fixture(scope="module")
def model(digits) -> LinfNetwork:
    train = digits.select(torch.arange(300))
    settings = Settings(epochs=20, batch_size=50, optimizer="adam", lr=0.03, weight_decay=0.0)
    procedure = LinfDistanceNet(epsilon=0.2, lambda_end=0.001)
    run = fit(Run(build_model("linf-net:width=32,depth=2", train), train, procedure=procedure, settings=settings))
    assert isinstance(run.model, LinfNetwork)
    return run.model


def test_each_radius_counts_right_images_that_a_margin_or_bounds_certify(model, digits):
    test = digits.select(torch.arange(300, 500))
    result = audit_certified_linf(model, test)
    x, n = test.floats(torch.arange(200)), 200
    margin = LinfMargin().certify(model, x)
    found = []
    for level, share, _, _, by_margin, size in result.tables[0].rows:
        bounds = IntervalBounds(float(level) / 255).certify(model, x)
        by_hand = (margin.radii > float(level) / 255) & (margin.labels == test.labels)
        assert by_margin == pytest.approx(float(by_hand.double().mean()))
        assert share == float((by_hand | (bounds.certified & (bounds.labels == test.labels))).double().mean())
        assert size == n
        found.append(share)
    assert [row[0] for row in result.tables[0].rows] == list(LEVELS)
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.3
    clean = float((margin.labels == test.labels).double().mean())
    assert result.summary["clean accuracy"].value == pytest.approx(clean)
    assert result.summary["certified accuracy at 8/255"].value == found[LEVELS.index(8)]
    expected = float(((margin.labels == test.labels) * margin.radii).mean())
    assert result.summary["average certified radius"].value == pytest.approx(expected)
    assert result.per_sample["certified_radius"].shape == (n,)
    assert "no change of every value" in result.notes[0]


def test_tables_and_networks_in_training_are_refused(model, digits, wine):
    with pytest.raises(DataError, match="needs images, but the data are a table"):
        audit_certified_linf(model, wine)
    model.exponent = 8.0
    try:
        with pytest.raises(Incompatible, match="only p = infinity is certified"):
            audit_certified_linf(model, digits.select(torch.arange(10)))
    finally:
        model.exponent = math.inf


def test_a_run_certifies_itself_and_smoothing_is_asked_for_by_its_noise(weathered, tmp_path):
    code, _, err = weathered(*TRAIN)
    assert code == 0, err
    run = next((tmp_path / "runs").glob("*/run.json")).parent
    code, out, err = weathered("audit", str(run), "--audits", "certified", "--limit", "60")
    assert code == 0, err
    assert "Proved, not estimated" in out
    kept = json.loads((run / "audit.json").read_text())
    assert kept["certified"]["tables"][0]["title"] == "Certified accuracy by Linf radius"
    code, out, err = weathered("audit", str(run), "--audits", "certified", "--sigma", "0.25", "--limit", "60")
    assert code == 0, err
    assert "Noise of deviation 0.25" in out
    code, _, err = weathered("report", str(run), "-o", "report.html")
    assert code == 0, err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--model", "cnn_small"), "LinfDistanceNet needs 'linf_distances'"),
        (("--use", "ldam"), "Drop one"),
        (("--use", "mixup"), "LinfDistanceNet needs 'hard_target'"),
        (("--model", "linf-net:depth=1"), "depth at least 2"),
        (("--model", "linf-net:wdith=8"), "Did you mean 'width'?"),
    ],
)
def test_what_does_not_fit_is_one_sentence(weathered, given, message):
    code, _, err = weathered(*TRAIN, *given)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
