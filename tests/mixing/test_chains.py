"""Chains of mixing transforms: the target stays the share of pixels, or the chain is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.errors import Incompatible
from weathered.core.facts import check
from weathered.core.procedure import Procedure
from weathered.core.rng import generator
from weathered.core.roles import Transform
from weathered.core.run import Run
from weathered.data.dataset import Dataset
from weathered.mixing.cutmix import CutMix
from weathered.mixing.fmix import FMix
from weathered.mixing.mixup import MixUp
from weathered.mixing.one_of import OneOf
from weathered.mixing.resizemix import ResizeMix
from weathered.nn.build import build_model

IMAGES = {"image", "range01", "uniform_pixels", "hard_target", "num_classes", "class_counts", "index"}

PARTS = st.one_of(
    st.builds(MixUp, st.floats(0.1, 4), st.floats(0, 1), st.booleans(), st.booleans()),
    st.builds(CutMix, st.floats(0.1, 4), st.floats(0, 1), st.booleans()),
    st.builds(FMix, st.floats(0.1, 4), st.floats(0, 4), st.floats(0, 1), st.booleans()),
    st.builds(ResizeMix, st.floats(0.1, 0.5), st.floats(0.5, 1), st.floats(0, 1)),
)
CUTTING = (CutMix, FMix, ResizeMix)


def one_hot_channels(size: int, pixels: int) -> torch.Tensor:
    """Image i is white in channel i only."""
    return torch.eye(size)[:, :, None, None].expand(size, size, pixels, pixels).contiguous()


def refused(chain: list[Transform]) -> bool:
    try:
        check(IMAGES, [("transform", part) for part in chain], Procedure())
    except Incompatible:
        return True
    return False


def cuts(part: Transform) -> bool:
    return isinstance(part, CUTTING) or (isinstance(part, OneOf) and any(map(cuts, part.parts)))


LINKS = PARTS | st.lists(PARTS, min_size=1, max_size=3).map(OneOf)


@given(st.lists(LINKS, min_size=1, max_size=4), st.integers(0, 10**6), st.booleans())
def test_target_is_the_share_of_pixels(chain, seed, channels_last):
    assert refused(chain) == (sum(map(cuts, chain)) > 1)
    if refused(chain):
        return
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = one_hot_channels(8, 12).contiguous(memory_format=layout)
    given_batch = batch = Batch.of(x, torch.arange(8))
    before = x.clone()
    for number, part in enumerate(chain):
        batch = part(batch, generator(seed, number))
    assert_close(batch.target.dense(8), batch.x.mean((2, 3)), atol=1e-6, rtol=0)
    assert batch.x.is_contiguous(memory_format=layout)
    assert torch.equal(x, before)
    assert torch.equal(given_batch.target.dense(8), torch.eye(8))


def test_a_refused_chain_would_have_been_wrong():
    batch = Batch.of(one_hot_channels(8, 12), torch.arange(8))
    gaps = []
    for seed in range(20):
        twice = CutMix()(CutMix()(batch, generator(seed, 0)), generator(seed, 1))
        gaps.append(float((twice.target.dense(8) - twice.x.mean((2, 3))).abs().max()))
    assert max(gaps) > 0.05


@pytest.mark.parametrize("chain", [[CutMix(), CutMix()], [CutMix(), MixUp(), CutMix()]])
def test_a_run_refuses_two_boxes(small_digits: Dataset, chain):
    with pytest.raises(Incompatible, match=r"CutMix needs 'uniform_pixels' .* but CutMix runs earlier"):
        Run(build_model("cnn_small:width=8", small_digits), small_digits, transforms=chain)


@pytest.mark.parametrize(
    "chain", [[CutMix()], [MixUp(), CutMix()], [CutMix(), MixUp()], [MixUp(), MixUp(), CutMix(), MixUp()]]
)
def test_a_run_gives_models_the_share_of_pixels(chain):
    white = (one_hot_channels(8, 12) * 255).byte()
    data = Dataset.of(white, torch.arange(8))
    run = Run(build_model("cnn_small:width=8", data), data, transforms=chain)
    run.begin_step()
    batch = run.prepare(white, data.labels, torch.arange(8))
    assert batch.x.dtype == torch.float32
    assert not batch.target.is_hard
    assert_close(batch.target.dense(8), batch.x.mean((2, 3)), atol=1e-6, rtol=0)
    assert torch.equal(white, (one_hot_channels(8, 12) * 255).byte())
