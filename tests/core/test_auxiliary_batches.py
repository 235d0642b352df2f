"""Auxiliary batches: each row once per pass, the same at a repeated step, augmented but never mixed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from weathered.augment.crop_flip import CropFlip
from weathered.core.auxiliary import stream_rows
from weathered.core.errors import DataError, Incompatible, SpecError
from weathered.core.facts import Traits
from weathered.core.procedure import Procedure
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.auxiliary import load_auxiliary
from weathered.data.dataset import Dataset
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


@given(st.integers(1, 20), st.integers(0, 50), st.integers(0, 30), st.integers(0, 3))
def test_each_pass_has_a_generator_of_its_own_whatever_was_read_before(length, start, count, seed):
    cycles = range((start + count) // length + 1)
    orders = [torch.randperm(length, generator=generator(seed, "auxiliary", "ood", cycle)) for cycle in cycles]
    expected = torch.cat(orders)[start : start + count]
    rows = stream_rows(length, start, count, seed, "ood")
    assert torch.equal(rows, expected)
    rows += 1
    assert torch.equal(stream_rows(length, start, count, seed, "ood"), expected)


class Permutations(TorchFunctionMode):
    """Counts the permutations that are drawn."""

    drawn = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.drawn += func is torch.randperm
        return func(*args, **(kwargs or {}))


def test_the_steps_of_a_pass_share_one_permutation():
    with Permutations() as count:
        for step in range(20):
            stream_rows(1000, step * 100, 100, 71, "counted")
    assert count.drawn == 2


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


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 16, 16), (64,)])
def test_auxiliary_inputs_of_another_shape_are_refused_before_the_first_step(digits, shape):
    train = digits.select(torch.arange(64))
    inputs = torch.zeros(20, *shape, dtype=torch.uint8 if len(shape) == 3 else torch.float32)
    aux = {"ood": Dataset.of(inputs, torch.zeros(20))}
    with pytest.raises(
        DataError, match=r"'ood' have inputs of shape \(.*, those of digits are \(1, 8, 8\).*--image-size"
    ) as found:
        Run(build_model("cnn_small:width=8", train), train, aux=aux, settings=Settings(1, 32))
    assert str(shape) in str(found.value)
