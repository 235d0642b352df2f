"""Corruption audit: limit cases, draws that do not depend on chunks, and bounded memory."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from weathered.audit.corruption import audit_corruption
from weathered.audit.pieces import Pieces
from weathered.core.errors import DataError, NonFinite, SpecError
from weathered.data.dataset import Dataset


def brightness_data(size: int = 600) -> Dataset:
    """Grey images of ten brightnesses; the class is the brightness."""
    labels = torch.arange(size) % 10
    images = (labels * 25 + 12).to(torch.uint8)[:, None, None, None].expand(size, 1, 8, 8).contiguous()
    return Dataset.of(images, labels)


def read_brightness(x: torch.Tensor) -> torch.Tensor:
    """Logits of a classifier that is right on clean images."""
    return -(x.mean((1, 2, 3))[:, None] * 255 - (torch.arange(10) * 25 + 12)).abs()


def fade(x: torch.Tensor, kind: str, severity: int, rng: torch.Generator) -> torch.Tensor:
    """none: nothing. black: all black. noise: one offset per image, wider with severity."""
    if kind == "none":
        return x
    if kind == "black":
        return torch.zeros_like(x)
    return (x + 0.05 * severity * torch.randn(len(x), 1, 1, 1, generator=rng)).clamp(0, 1)


def test_limit_cases():
    result = audit_corruption(read_brightness, brightness_data(), 0, ["none", "black"], corrupt=fade)
    rows = {row[0]: row for row in result.tables[0].rows}
    assert rows["none"][1:7] == (1.0,) * 6
    assert rows["black"][1:7] == pytest.approx((0.1,) * 6)
    assert result.summary["clean accuracy"].value == 1
    assert result.summary["mean corruption accuracy"].value == pytest.approx(0.55)
    assert result.summary["accuracy lost to corruption"].value == pytest.approx(0.45)
    assert result.summary["worst corruption accuracy"].value == pytest.approx(0.1)
    assert not result.higher_is_better["accuracy lost to corruption"]
    assert np.allclose(result.per_sample["corrupted_accuracy"], np.where(np.arange(600) % 10, 0.5, 1.0))


def test_severity_matters_and_every_cell_has_n_and_interval():
    result = audit_corruption(read_brightness, brightness_data(), 0, ["noise"], corrupt=fade)
    accuracy = [row[3] for row in result.tables[1].rows]
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[0] > accuracy[-1] + 0.3
    assert all(row[2] == 600 and row[4] <= row[3] <= row[5] for row in result.tables[1].rows)
    assert result.figures[0].series[0].x == [0, 1, 2, 3, 4, 5]
    assert result.figures[0].series[0].y == [1.0, *accuracy]


def test_draws_depend_on_the_seed_and_not_on_the_chunk():
    data = brightness_data(1100)
    small, large, other = (
        audit_corruption(read_brightness, data, seed, ["noise"], (2, 4), chunk, fade).per_sample["corrupted_accuracy"]
        for seed, chunk in ((0, 256), (0, 1024), (1, 256))
    )
    assert np.array_equal(small, large)
    assert not np.array_equal(small, other)
    alone = audit_corruption(read_brightness, data, 0, ["none", "noise"], (4,), 256, fade).tables[1].rows[1]
    both = audit_corruption(read_brightness, data, 0, ["noise"], (2, 4), 256, fade).tables[1].rows[1]
    assert alone == both


def test_images_repeat_only_within_the_draws_of_their_row():
    seen = []

    def record(x: torch.Tensor) -> torch.Tensor:
        seen.append(x[:, 0, 0, 0].clone())
        return read_brightness(x)

    audit_corruption(record, brightness_data(520), 0, ["noise"], (1,), 256, fade)
    clean, noisy = torch.cat(seen[:3]), torch.cat(seen[3:])
    inner = (clean > 0.2) & (clean < 0.8)
    assert len(set((noisy - clean)[inner].tolist())) > 0.9 * int(inner.sum())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kinds": []}, SpecError, "at least one kind"),
        ({"severities": (0, 1)}, SpecError, "1 to 5"),
        ({"severities": ()}, SpecError, "1 to 5"),
        ({"chunk": 100}, SpecError, "multiple of 256"),
        ({"dataset": Dataset.of(torch.zeros(4, 3), torch.zeros(4))}, DataError, "need at least one image"),
        ({"predict": lambda x: torch.full((len(x), 10), float("nan"))}, NonFinite, "row 0 under clean"),
    ],
)
def test_bad_input_is_named(changes, error, message):
    arguments = {"predict": read_brightness, "dataset": brightness_data(20), "seed": 0, "kinds": ["none"]} | changes
    with pytest.raises(error, match=message):
        audit_corruption(**arguments, corrupt=fade)


def test_library_corruptions_run_and_unknown_ones_are_refused():
    corruptions = pytest.importorskip("weathered.data.corruptions", reason="the corruptions are not there yet")
    if not hasattr(corruptions, "corrupt"):
        pytest.skip("the corruptions are not there yet")
    images = torch.randint(256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = Dataset.of(images, torch.arange(12) % 3)
    with pytest.raises(SpecError, match="unknown corruption 'nonsense'"):
        audit_corruption(lambda x: x.mean((2, 3)), data, 0, ["nonsense"])
    result = audit_corruption(lambda x: x.mean((2, 3)), data, 0, severities=(3,))
    assert [row[0] for row in result.tables[0].rows] == list(corruptions.CORRUPTIONS)


MEMORY = """
import resource, torch
from weathered.audit.corruption import audit_corruption
from weathered.data.dataset import Dataset
data = Dataset.of(torch.zeros(50_000, 3, 32, 32, dtype=torch.uint8), torch.zeros(50_000, dtype=torch.long), ("a", "b"))
noise = lambda x, kind, severity, rng: x + 0.1
audit_corruption(lambda x: x.mean((2, 3))[:, :2], data, 0, ["noise"], (1,), corrupt=noise)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def test_fifty_thousand_images_fit_into_two_gibibytes():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2


def test_it_goes_on_where_it_was_stopped(tmp_path):
    data, calls = brightness_data(300), []

    def counted(x, kind, severity, rng):
        calls.append((kind, severity))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return fade(x, kind, severity, rng)

    whole = audit_corruption(read_brightness, data, 0, ["noise"], corrupt=fade).to_json()
    pieces = Pieces(tmp_path / "pieces")
    with pytest.raises(KeyboardInterrupt):
        audit_corruption(read_brightness, data, 0, ["noise"], corrupt=counted, pieces=pieces)
    # two blocks of 256 images for each severity, and clean images are not corrupted
    assert sorted(path.stem for path in (tmp_path / "pieces").iterdir()) == ["clean.0", "noise.1", "noise.2"]
    again = audit_corruption(read_brightness, data, 0, ["noise"], corrupt=counted, pieces=pieces).to_json()
    assert json.dumps(again) == json.dumps(whole)
    assert len(calls) == 5 + 2 * 3
