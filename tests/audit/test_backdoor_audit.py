"""The backdoor audit: shares by hand, and runs that know their trigger."""

import json

import pytest
import torch

from weathered.audit.backdoor import BASE, CLEAN, COUNTING_ALL, SUCCESS, audit_backdoor
from weathered.core.errors import DataError
from weathered.data.dataset import Dataset
from weathered.data.patch import Patch


def test_success_leaves_the_target_class_out_and_stands_beside_the_base_rate():
    """Eight images of classes 0, 0, 1, 1, 2, 2, 2, 2, told apart by their first pixel; the target is 0."""
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2])
    images = torch.zeros(8, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])
    plain, stamped = torch.tensor([0, 1, 1, 0, 2, 2, 2, 1]), torch.tensor([0, 0, 0, 1, 0, 0, 2, 2])

    def predict(x):
        rows = (x[:, 0, 0, 0] * 255).round().long()
        found = torch.where(x[:, 0, 1, 1] == 7.0, stamped[rows], plain[rows])
        return torch.nn.functional.one_hot(found, 3).float()

    data = Dataset.of(images, labels, ("a", "b", "c"))
    result = audit_backdoor(predict, data, Patch(torch.full((1, 1, 1), 7.0), 1, 1), 0)
    figures = {name: (estimate.value, estimate.n) for name, estimate in result.summary.items()}
    assert figures == {SUCCESS: (3 / 6, 6), BASE: (1 / 6, 6), CLEAN: (5 / 8, 8), COUNTING_ALL: (5 / 8, 8)}
    assert next(iter(figures)) == SUCCESS
    assert result.higher_is_better == {SUCCESS: False, BASE: False, CLEAN: True, COUNTING_ALL: False}
    assert result.per_sample["predicted_stamped"].tolist() == stamped.tolist()
    assert result.tables[0].rows == (("a", 1.0, 0.5, 2), ("b", 0.5, 0.5, 2), ("c", 0.5, 0.0, 4))
    assert "from 7 to 7" in result.notes[0]
    assert "It leaves [0, 1]" in result.notes[0]
    assert "no more images" in result.notes[1]


def test_a_network_that_follows_the_patch_is_found_out(digits):
    def predict(x):
        lit = (x[:, 0, 5:7, 5:7] == 1).flatten(1).all(1)
        return torch.nn.functional.one_hot(torch.where(lit, 4, 9), 10).float()

    patch = Patch(torch.ones(1, 2, 2), 5, 5)
    result = audit_backdoor(predict, digits, patch, 4)
    assert result.summary[SUCCESS].value == 1
    assert "more images are taken for the target than without, beyond chance" in result.notes[1]
    assert "leaves" not in result.notes[0]


def test_data_that_do_not_fit_are_refused(digits, wine):
    patch = Patch(torch.ones(1, 2, 2), 5, 5)
    for data, given, target, message in (
        (wine, patch, 0, "needs images"),
        (digits, patch, 10, r"target must be in \[0, 9\]"),
        (digits, Patch(torch.ones(3, 2, 2), 5, 5), 0, "does not fit images"),
        (digits.select(digits.labels == 0), patch, 0, "image of another class than the target"),
    ):
        with pytest.raises(DataError, match=message):
            audit_backdoor(lambda x: x, data, given, target)


def test_runs_that_planted_a_trigger_are_audited_by_the_command(weathered, tmp_path):
    common = ("digits", "--limit", "300", "--model", "mlp:width=32", "--evaluations", "2")
    distil = "dd-backdoor:attack=naive,portion=0.1,images_per_class=2,outer=2,inner=2,network_epochs=5,network_lr=0.05"
    arms = {
        "maker": ("--make", "backdoor:rate=0.1,target=2", "--epochs", "3"),
        "distil": ("--use", distil, "--epochs", "3", "--batch-size", "300", "--weight-decay", "0"),
        "clean": ("--epochs", "1"),
    }
    for name, options in arms.items():
        code, out, err = weathered("train", *common, *options, "--out", name)
        assert code == 0, err
        (folder,) = (tmp_path / name).iterdir()
        code, out, err = weathered("audit", str(folder), "--audits", "backdoor", "--json")
        if name == "clean":
            assert code == 2
            assert "planted no trigger" in err
            assert len(err.strip().splitlines()) == 1
            continue
        assert code == 0, err
        result = json.loads(out)["backdoor"]
        found = result["summary"]
        assert f"taken for '{2 if name == 'maker' else 0}'" in result["notes"][0]
        assert found[SUCCESS]["n"] < found[COUNTING_ALL]["n"] == 450
        assert (folder / "synthetic.safetensors").exists() == (name == "distil")
