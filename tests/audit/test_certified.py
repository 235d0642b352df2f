"""The certified audit is made in pieces, which change nothing of what it finds."""

import pytest
import torch
from torch import nn

from weathered.audit.certified import BLOCK, audit_certified
from weathered.audit.pieces import Pieces
from weathered.certify.smoothing import RandomizedSmoothing
from weathered.core.errors import DataError
from weathered.core.rng import generator


class Halves(nn.Module):
    """Says which half of an image is brighter, and counts the copies that it is asked for."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        upper, lower = x.flatten(1).chunk(2, 1)
        return torch.stack([upper.mean(1), lower.mean(1)], 1) * 20


@pytest.fixture
def halves(digits):
    rows = digits.select(torch.arange(2 * BLOCK + 5))
    upper, lower = rows.floats(torch.arange(len(rows))).flatten(1).chunk(2, 1)
    return rows.replace(labels=(lower.mean(1) > upper.mean(1)).long(), class_names=("upper", "lower"))


def test_pieces_give_what_one_call_on_all_images_gives(halves):
    result = audit_certified(Halves(), halves, 0.25, seed=3, n=200, n0=20)
    whole = RandomizedSmoothing(0.25, n0=20, n=200).certify(
        Halves(), halves.floats(torch.arange(len(halves))), generator(3, "certified audit")
    )
    assert torch.equal(torch.from_numpy(result.per_sample["certified_radius"]), whole.radii)
    assert torch.equal(torch.from_numpy(result.per_sample["certified_label"]), whole.labels)
    assert float(whole.radii.max()) > 0


class Killed(Exception):
    pass


def test_an_audit_that_was_stopped_goes_on_where_it_stood(halves, tmp_path):
    def stop(name, done, total):
        assert (name, total) == ("certified", len(halves))
        if done == BLOCK:
            raise Killed

    whole, fresh = audit_certified(Halves(), halves, 0.25, 0, 200, 20), Halves()
    with pytest.raises(Killed), Pieces(tmp_path / "kept") as pieces:
        audit_certified(Halves(), halves, 0.25, 0, 200, 20, pieces=pieces, watch=stop)
    with Pieces(tmp_path / "kept") as pieces:
        resumed = audit_certified(fresh, halves, 0.25, 0, 200, 20, pieces=pieces)
    assert resumed.to_json() == whole.to_json()
    assert 0 < fresh.seen <= (len(halves) - BLOCK) * 220
    assert not (tmp_path / "kept").exists()


def test_tables_are_refused(wine):
    with pytest.raises(DataError, match="needs images"):
        audit_certified(Halves(), wine, 0.25, 0)
