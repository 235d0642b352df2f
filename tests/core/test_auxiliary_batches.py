"""Auxiliary batches: each row once per pass, the same at a repeated step, augmented but never mixed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weathered.core.auxiliary import stream_rows
from weathered.core.errors import Incompatible, SpecError
from weathered.core.facts import Traits
from weathered.core.procedure import Procedure
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.augment import CropFlip
from weathered.data.auxiliary import load_auxiliary
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model


@given(st.integers(1, 20), st.integers(0, 50), st.integers(0, 50))
def test_a_stream_is_one_row_of_permutations_wherever_it_is_cut(length, start, count):
    whole = stream_rows(length, 0, start + count, 3, "ood")
    assert torch.equal(stream_rows(length, start, count, 3, "ood"), whole[start:])
    for cycle in whole.split(length):
        assert len(cycle.unique()) == len(cycle)


def test_streams_of_other_seeds_and_names_differ():
    first = stream_rows(100, 0, 100, 0, "ood")
    assert not torch.equal(first, stream_rows(100, 0, 100, 1, "ood"))
    assert not torch.equal(first, stream_rows(100, 0, 100, 0, "other"))


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        stream_rows(0, 0, 1, 0, "ood")


def make(digits, transforms=(), **changes):
    train = digits.select(torch.arange(64))
    aux = {"ood": load_auxiliary("gaussian:size=50", train, 0)}
    model = build_model("cnn_small", train)
    return Run(model, train, aux=aux, transforms=transforms, settings=Settings(2, 16), **changes)


def test_a_step_has_its_own_rows_and_repeats_them(digits):
    run = make(digits)
    run.begin_step()
    first = run.aux("ood", 25)
    assert first.shape == (25, 1, 8, 8)
    assert first.dtype == torch.float32
    assert torch.equal(run.aux("ood", 25), first)
    run.step = 1
    second = run.aux("ood", 25)
    everything = run.aux_data["ood"].floats(torch.arange(50)).flatten(1)
    seen = torch.cat([first, second]).flatten(1)
    assert torch.equal(seen.unique(dim=0), everything.unique(dim=0))


def test_augmentation_is_applied_and_mixing_is_not(digits):
    run = make(digits)
    plain = run.aux("ood", 30)
    mixing = make(digits, [MixUp()])
    assert torch.equal(mixing.aux("ood", 30), plain)
    cropped = make(digits, [CropFlip(padding=1)]).aux("ood", 30)
    assert cropped.shape == plain.shape
    assert not torch.equal(cropped, plain)


def test_unknown_names_are_refused_with_the_way_out(digits):
    with pytest.raises(SpecError, match=r"no auxiliary data 'odd'. Did you mean 'ood'\? Give --aux odd=SOURCE"):
        make(digits).aux("odd", 4)
    with pytest.raises(ValueError, match="size must be at least 1"):
        make(digits).aux("ood", 0)


def test_a_part_that_needs_auxiliary_data_is_refused_without_it(digits):
    class Needy(Procedure):
        traits = Traits(needs={"aux:ood": "it trains on them"}, honours=Procedure.traits.honours)

    assert make(digits, procedure=Needy()).facts >= {"aux", "aux:ood"}
    train = digits.select(torch.arange(64))
    with pytest.raises(Incompatible, match="give some with --aux ood=patches"):
        Run(build_model("cnn_small", train), train, procedure=Needy(), settings=Settings(2, 16))
