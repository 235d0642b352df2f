"""The shift audit: what its tests find, what they leave alone, and how new data reach it."""

import json

import numpy as np
import pytest
import torch

from weathered.audit.shift import (
    Findings,
    NewSet,
    audit_shift,
    describe_inputs,
    expected_accuracy,
    find_shift,
    holm,
    kolmogorov_smirnov,
    separate,
)
from weathered.stats import Estimate


def gaussian(rows, columns, seed, mean=0.0, scale=1.0):
    return mean + scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_p_values_of_rows_of_one_distribution_are_spread_evenly():
    pairs = [(gaussian(60, 2, 2 * i).numpy(), gaussian(40, 2, 2 * i + 1).numpy()) for i in range(40)]
    p_values = [separate(*pair, seed=i, trees=10)[1] for i, pair in enumerate(pairs)]
    # the mean of 40 even draws lies within 0.15 of a half but once in a thousand times
    assert abs(np.mean(p_values) - 0.5) < 0.15


@pytest.mark.parametrize("change", [{"mean": 1.5}, {"scale": 4.0}], ids=["moved", "spread"])
def test_a_shift_of_mean_or_of_spread_is_found_with_its_size(change):
    found, p = separate(gaussian(200, 3, 0).numpy(), gaussian(200, 3, 1, **change).numpy(), 0)
    assert p < 1e-6
    assert found.value > 0.8
    assert found.low < found.value < found.high
    assert found.n == 200


def test_the_forest_is_the_same_for_the_same_seed():
    sides = gaussian(50, 4, 0).numpy(), gaussian(50, 4, 1).numpy()
    assert separate(*sides, 3) == separate(*sides, 3)


def test_noise_that_keeps_the_mean_image_shows_in_what_the_forest_sees():
    images = torch.full((40, 1, 24, 24), 0.5)
    noisy = images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    clean, changed = describe_inputs(images, noisy, 0)
    assert clean.shape == changed.shape
    # contrast, and roughness along both axes
    assert bool((changed[:, 1:4] > clean[:, 1:4] + 0.05).all())


def test_kolmogorov_smirnov_of_known_columns():
    reference = np.stack([np.arange(100) / 100, np.zeros(100)], 1)
    new = np.stack([np.arange(100) / 100, np.repeat([0.0, 1.0], [70, 30])], 1)
    distance, moved, p = kolmogorov_smirnov(reference, new)
    assert (moved, distance.value) == (1, pytest.approx(0.3))
    assert distance.low < 0.3 < distance.high
    assert p < 0.001
    same, _, p = kolmogorov_smirnov(reference, reference)
    assert (same.value, same.low, p) == (0.0, 0.0, 1.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.9]) == [1.0, 1.0]


def test_expected_accuracy_on_the_test_rows_is_their_accuracy():
    rng = np.random.default_rng(0)
    confidence = rng.permutation(np.linspace(0.2, 1, 50))
    correct = rng.random(50) < 0.7
    assert expected_accuracy(confidence, correct, confidence) == pytest.approx(correct.mean())
    assert expected_accuracy(confidence, np.zeros(50, dtype=bool), confidence) == 0.0


def test_a_drift_of_classes_alone_shows_in_predictions_and_their_shares():
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (400,), generator=rng)
    logits = torch.stack([-2.0 * (labels * 2 - 1), 2.0 * (labels * 2 - 1)], 1) + 0.1 * torch.randn(
        400, 2, generator=rng
    )
    inputs = gaussian(400, 2, 5)
    kept = torch.cat([(labels == 1).nonzero()[:, 0], (labels == 0).nonzero()[:20, 0]])
    new = NewSet(gaussian(len(kept), 2, 6), logits[kept])
    found = find_shift(gaussian(400, 2, 7), NewSet(inputs, logits, labels), new, 0)
    assert found.predictions_p < 1e-6
    assert found.inputs_p > 0.01
    share = 20 / len(kept)
    assert found.variation == pytest.approx(abs(float((labels == 0).float().mean()) - share), abs=1e-6)
    assert found.accuracy is None
    assert found.expected == 1.0


def test_the_verdict_names_what_is_shifted_and_the_lowest_accuracy_counts():
    def one(p, accuracy):
        return Findings(Estimate(0.6, 0.5, 0.7, 9), p, Estimate(0.1, 0, 0.3, 9), 0, 0.5, 0.0, accuracy, 0.5)

    found = {"a": one(0.001, Estimate(0.8, 0.7, 0.9, 50)), "b": one(0.4, Estimate(0.6, 0.5, 0.7, 50))}
    result = audit_shift(found, Estimate(0.9, 0.8, 0.95, 100), ("x", "y"))
    assert result.summary["lowest accuracy on new data"].value == 0.6
    assert result.summary["accuracy lost at most"].value == pytest.approx(0.3)
    assert result.notes[0].startswith("'a': inputs are shifted")
    assert result.notes[1] == "'b': no shift was found, neither of inputs nor of predictions."
    with pytest.raises(ValueError, match="at least one new set"):
        audit_shift({}, Estimate(0.9, 0.8, 0.95, 100), ("x", "y"))


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="at least 4 rows"):
        separate(np.zeros((3, 2)), np.zeros((9, 2)), 0)


@pytest.fixture
def trained(weathered):
    """A run on digits in the folder of the test: its path."""
    code, out, err = weathered("train", "digits", "--limit", "400", "--epochs", "2", "--json")
    assert code == 0, err
    return json.loads(out)["run"]


def test_new_images_are_compared_through_the_command(weathered, trained, digits, tmp_path):
    noise = torch.randint(-80, 80, (300, 8, 8), generator=torch.Generator().manual_seed(0))
    noisy = (digits.inputs.fetch(torch.arange(300))[:, 0].int() + noise).clamp(0, 255).byte().numpy()
    np.savez(tmp_path / "noisy.npz", x=noisy, y=digits.labels[:300].numpy())
    code, out, err = weathered("audit", trained, "--audits", "shift", "--new", "npz:noisy.npz", "--json")
    assert code == 0, err
    assert "shift: about" in err
    result = json.loads(out)["shift"]
    own, new = result["tables"][0]["rows"]
    assert own[0] == "own test set"
    assert own[2] < 0.6 < 0.9 < new[2]
    assert new[5] < 1e-6
    assert 0 <= new[12] <= 1
    assert any("inputs" in note and "noisy.npz" in note for note in result["notes"])


def test_images_without_classes_have_no_accuracy(weathered, trained):
    code, out, err = weathered("audit", trained, "--audits", "shift", "--new", "patches:size=100", "--json")
    assert code == 0, err
    row = json.loads(out)["shift"]["tables"][0]["rows"][1]
    assert row[12] == "-"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--audits", "accuracy", "--new", "digits"), "add --audits shift"),
        (("--audits", "shift", "--new", "nowhere.npz"), "nowhere.npz"),
        (("--audits", "shift", "--new", "patches:size=5"), "at least 20 rows"),
    ],
)
def test_what_does_not_fit_is_one_sentence(weathered, trained, arguments, message):
    code, _, err = weathered("audit", trained, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_new_table_needs_no_labels(weathered, wine, tmp_path):
    x, names = wine.inputs.fetch(torch.arange(len(wine))).numpy(), [f"f{i}" for i in range(13)]

    def write(path, rows, labelled, factor=1.0):
        header = [*names, "label"] if labelled else names
        lines = [
            ",".join([*(repr(float(v * factor)) for v in x[row]), *([f"c{int(wine.labels[row])}"] if labelled else [])])
            for row in rows
        ]
        (tmp_path / path).write_text("\n".join([",".join(header), *lines]) + "\n")

    write("train.csv", range(0, 178, 2), True)
    write("test.csv", range(1, 178, 2), True)
    write("new.csv", range(1, 178, 2), False, factor=1.3)
    code, out, err = weathered("train", "train.csv", "--test", "test.csv", "--model", "mlp", "--epochs", "2", "--json")
    assert code == 0, err
    code, out, err = weathered("audit", json.loads(out)["run"], "--audits", "shift", "--new", "new.csv", "--json")
    assert code == 0, err
    row = json.loads(out)["shift"]["tables"][0]["rows"][1]
    assert row[5] < 0.01
    assert row[12] == "-"
