"""CutMix: every pixel has one source, and the label share is the share of pixels."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.errors import Incompatible
from weathered.core.fit import fit
from weathered.core.objective import losses_of
from weathered.core.rng import draw_beta, generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset, as_float
from weathered.losses.cross_entropy import CrossEntropy
from weathered.mixing.cutmix import Box, CutMix, cutmix, draw_box
from weathered.nn.build import build_model

LAYOUTS = [torch.contiguous_format, torch.channels_last]
SIZES = st.tuples(st.integers(1, 17), st.integers(1, 17))


def images(size: int = 6, shape: tuple[int, int] = (9, 7), seed: int = 0) -> torch.Tensor:
    return torch.rand(size, 3, *shape, generator=generator(seed, "images"))


def permutation(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randperm(size, generator=generator(seed, "permutation"))


def ends(box: Box, i: int) -> tuple[int, ...]:
    return tuple(int(end[i]) if isinstance(end, torch.Tensor) else end for end in box)


def paste_slowly(x: torch.Tensor, box: Box, partner: torch.Tensor) -> torch.Tensor:
    mixed = x.clone()
    for i in range(len(x)):
        top, bottom, left, right = ends(box, i)
        mixed[i, ..., top:bottom, left:right] = x[partner[i], ..., top:bottom, left:right]
    return mixed


@pytest.mark.parametrize("per_sample", [False, True])
def test_share_one_is_an_empty_box(per_sample):
    x = images()
    lam = torch.ones(6, dtype=torch.float64) if per_sample else 1.0
    box = draw_box((9, 7), lam, generator(0))
    assert torch.equal(torch.as_tensor(box.share((9, 7))), torch.zeros(6 if per_sample else ()))
    assert torch.equal(cutmix(x, box, permutation(6)), x)
    batch = Batch.of(x, torch.arange(6))
    logits = torch.randn(6, 6, generator=generator(0))
    mixed = CutMix(probability=0.0, per_sample=per_sample)(batch, generator(0))
    assert torch.equal(
        losses_of(CrossEntropy(), logits, mixed.target), F.cross_entropy(logits, torch.arange(6), reduction="none")
    )


@given(st.integers(0, 1000), st.booleans())
def test_own_partner_gives_the_image_back(seed, per_sample):
    x = images()
    box = draw_box((9, 7), draw_beta(1.0, generator(seed), (6,)) if per_sample else 0.3, generator(seed))
    assert torch.equal(cutmix(x, box, torch.arange(6)), x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int16]
)
@pytest.mark.parametrize("per_sample", [False, True])
def test_every_pixel_is_own_or_partners_with_all_channels(layout, dtype, per_sample):
    x = (images(16) * 255).to(dtype).contiguous(memory_format=layout)
    before, partner = x.clone(), permutation(16)
    for seed in range(10):
        lam = draw_beta(1.0, generator(seed), (16,)) if per_sample else float(draw_beta(1.0, generator(seed)))
        box = draw_box((9, 7), lam, generator(seed))
        mixed = cutmix(x, box, partner)
        assert mixed.dtype == dtype
        assert mixed.is_contiguous(memory_format=layout)
        assert torch.equal(mixed, paste_slowly(x, box, partner))
    assert torch.equal(x, before)


@pytest.mark.parametrize("per_sample", [False, True])
def test_extreme_values_survive(per_sample):
    x = torch.tensor([0.0, 1.0, -1e30, 1e30, 1e-40, 255.0])[:, None, None, None].expand(6, 1, 4, 4).contiguous()
    low = torch.tensor([0, 255, 1, 254, 128, 127]).byte()[:, None, None, None].expand(6, 1, 4, 4).contiguous()
    partner = permutation(6, 1)
    box = Box(*(torch.full((6,), v) for v in (1, 3, 0, 2))) if per_sample else Box(1, 3, 0, 2)
    for values in (x, low):
        assert torch.equal(cutmix(values, box, partner), paste_slowly(values, box, partner))


@given(SIZES, st.integers(0, 10**6), st.booleans())
def test_label_share_is_the_share_of_own_pixels(size, seed, per_sample):
    x = torch.arange(8.0)[:, None, None, None].expand(8, 2, *size).contiguous()
    mixed = CutMix(per_sample=per_sample)(Batch.of(x, torch.arange(8)), generator(seed))
    sources = F.one_hot(mixed.x[:, 0].long(), 8).double().mean((1, 2))
    dense = mixed.target.dense(8)
    assert_close(dense, sources.float(), atol=1e-7, rtol=0)
    assert_close(dense.sum(1), torch.ones(8), atol=1e-6, rtol=0)
    assert ((mixed.target.weights >= 0) & (mixed.target.weights <= 1)).all()


@pytest.mark.parametrize("per_sample", [False, True])
def test_loss_equals_the_soft_target_loss(per_sample):
    logits = torch.randn(6, 6, generator=generator(0, "logits"))
    target = CutMix(per_sample=per_sample)(Batch.of(images(), torch.arange(6)), generator(0)).target
    parts = [
        w * F.cross_entropy(logits, y, reduction="none") for y, w in zip(target.labels, target.weights, strict=True)
    ]
    soft = F.cross_entropy(logits, target.dense(6), reduction="none")
    assert_close(sum(parts), soft, rtol=1e-6, atol=1e-6)
    assert_close(losses_of(CrossEntropy(), logits, target), soft, rtol=1e-6, atol=1e-6)


@given(st.integers(0, 1000))
def test_permuting_the_batch_permutes_the_output(seed):
    x, partner, order = images(seed=seed), permutation(6, seed), permutation(6, seed + 1)
    box = draw_box((9, 7), draw_beta(1.0, generator(seed), (6,)), generator(seed))
    moved = Box(*(torch.as_tensor(end)[order] for end in box))
    conjugate = order.argsort()[partner[order]]
    assert torch.equal(cutmix(x[order], moved, conjugate), cutmix(x, box, partner)[order])


@pytest.mark.parametrize("per_sample", [False, True])
def test_commutes_with_normalisation_and_flips(per_sample):
    x, partner = images(), permutation(6)
    lam = draw_beta(1.0, generator(5), (6,)) if per_sample else 0.4
    box = draw_box((9, 7), lam, generator(5))
    mixed = cutmix(x, box, partner)
    assert torch.equal(cutmix((x - 0.3) / 0.2, box, partner), (mixed - 0.3) / 0.2)
    flipped = Box(box.top, box.bottom, 7 - box.right, 7 - box.left)
    assert torch.equal(cutmix(x.flip(-1), flipped, partner), mixed.flip(-1))


def test_nominal_share_on_request():
    batch = Batch.of(images(64), torch.arange(64))
    corrected, nominal = (CutMix(per_sample=True, correct_lam=flag)(batch, generator(0)) for flag in (True, False))
    assert torch.equal(corrected.x, nominal.x)
    assert (corrected.target.weights[0] >= nominal.target.weights[0]).all()
    assert (corrected.target.weights[0] > nominal.target.weights[0] + 0.01).any()
    one = CutMix(correct_lam=False)(batch, generator(0))
    assert float(one.target.weights[0, 0]) == pytest.approx(float(draw_beta(1.0, generator(0))), abs=1e-7)


def test_probability_is_the_chance_of_mixing():
    batch = Batch.of(images(200, (32, 32)), torch.arange(200))
    assert CutMix(probability=0.0)(batch, generator(0)) is batch
    hard = [CutMix(probability=0.3)(batch, generator(s)).target.is_hard for s in range(200)]
    assert sum(hard) / 200 == pytest.approx(0.7, abs=0.1)
    shares = CutMix(probability=0.3, per_sample=True)(batch, generator(1)).target.weights[0]
    assert float((shares < 1).double().mean()) == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("per_sample", [False, True])
def test_draws_come_from_the_given_generator_only(per_sample):
    batch = Batch.of(images(), torch.arange(6))
    before = torch.get_rng_state()
    first, second = (CutMix(per_sample=per_sample)(batch, generator(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.target.weights, second.target.weights)


@pytest.mark.parametrize("per_sample", [False, True])
def test_videos_get_one_box_over_all_frames(per_sample):
    x = torch.rand(4, 5, 3, 8, 8, generator=generator(0))
    box = draw_box((8, 8), torch.tensor([0.2, 0.4, 0.6, 0.8]) if per_sample else 0.4, generator(2))
    assert torch.equal(cutmix(x, box, permutation(4)), paste_slowly(x, box, permutation(4)))


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_follow_the_pixels(per_sample):
    x = images(4).requires_grad_()
    box = Box(*(torch.full((4,), v) for v in (2, 5, 1, 4))) if per_sample else Box(2, 5, 1, 4)
    cutmix(x, box, torch.tensor([1, 2, 3, 0]))[0].sum().backward()
    expected = torch.zeros(4, 3, 9, 7)
    expected[0], expected[0, :, 2:5, 1:4], expected[1, :, 2:5, 1:4] = 1, 0, 1
    assert x.grad is not None
    assert torch.equal(x.grad, expected)


def test_bytes_are_mixed_as_floats_are():
    x = (images(8) * 255).byte()
    batch = Batch.of(x, torch.arange(8))
    for per_sample in (False, True):
        part = CutMix(per_sample=per_sample)
        mixed = part(batch, generator(1))
        assert mixed.x.dtype == torch.uint8
        assert torch.equal(as_float(mixed.x), part(batch.replace(x=as_float(x)), generator(1)).x)


def test_one_image_is_its_own_partner():
    mixed = CutMix()(Batch.of(images(1), torch.tensor([2])), generator(0))
    assert torch.equal(mixed.x, images(1))
    assert_close(mixed.target.dense(3), torch.tensor([[0.0, 0.0, 1.0]]))


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match="alpha must be > 0"):
        CutMix(alpha)


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_bad_probability(probability):
    with pytest.raises(ValueError, match="probability must be in"):
        CutMix(probability=probability)


def test_bad_inputs():
    x, partner = images(), permutation(6)
    for shape in ((6,), (6, 5), (6, 9, 7), (6, 1, 1, 3, 9, 7)):
        with pytest.raises(ValueError, match=r"images \(B, C, H, W\)"):
            CutMix()(Batch.of(torch.rand(shape), torch.arange(6)), generator(0))
    with pytest.raises(ValueError, match="one tensor"):
        cutmix([x[0], x[1]], Box(0, 1, 0, 1), torch.arange(2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="one position for each of 6"):
        cutmix(x, Box(0, 1, 0, 1), partner[:3])
    with pytest.raises(ValueError, match="four ends"):
        cutmix(x, Box(*(torch.ones(5, dtype=torch.long),) * 4), partner)
    with pytest.raises(ValueError, match="four ends"):
        cutmix(x, Box(0, torch.ones(6, dtype=torch.long), 0, 1), partner)
    with pytest.raises(ValueError, match="at least one pixel"):
        draw_box((0, 5), 0.5, generator(0))
    for lam in (-0.1, 1.1, math.nan, torch.tensor([0.5, math.nan])):
        with pytest.raises(ValueError, match="lam must be in"):
            draw_box((5, 5), lam, generator(0))
    with pytest.raises(ValueError, match="6 inputs but 5 labels"):
        Batch.of(x, torch.arange(5))


def test_tables_are_refused(wine):
    with pytest.raises(Incompatible, match="needs 'image'"):
        Run(build_model("mlp", wine), wine, transforms=[CutMix()])


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_run_trains_on_mixed_images(small_digits: Dataset, channels_last):
    settings = Settings(epochs=2, batch_size=50, lr=0.1, channels_last=channels_last)
    run = Run(
        lambda seed: build_model("cnn_small:width=8", small_digits, seed=seed),
        small_digits,
        transforms=[CutMix(probability=0.5, per_sample=True)],
        settings=settings,
    )
    losses: list[float] = []
    fit(run, after_epoch=lambda run, loss: losses.append(loss))
    assert run.step == 8
    assert losses[1] < losses[0]
    assert isinstance(
        run.prepare(small_digits.inputs.fetch(torch.arange(4)), small_digits.labels[:4], torch.arange(4)).target, Target
    )
