"""AutoMix: the loss and its gradient, the limits that are mixup and CutMix, other parts, and refusals."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from automix_runs import SGD, make
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.errors import Incompatible, NonFinite, SpecError
from weathered.core.facts import Traits
from weathered.core.fit import fit, train_step
from weathered.core.rng import draw_beta
from weathered.core.roles import Part
from weathered.core.run import Run
from weathered.data.dataset import Dataset
from weathered.losses.logitclip import LogitClip
from weathered.mixing.cutmix import cutmix, draw_box
from weathered.mixing.mixup import MixUp, mixup
from weathered.nn.build import build_model
from weathered.procedures.automix import AutoMix, mask_area_loss, mix_by_mask


def enlarge(run: Any) -> None:
    """Weights of the block that make masks uneven, and of the average that tell it from the model."""
    torch.manual_seed(0)
    for parameter in run.modules["mix_block"].parameters():
        nn.init.normal_(parameter, std=0.5)
    for parameter in run.modules["average"].parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))


def draws(run: Run) -> list[tuple[float, torch.Tensor]]:
    run.begin_step()
    rng = run.generator("automix", shared=True)
    found = [(float(draw_beta(2.0, rng)), torch.randperm(12, generator=rng)) for _ in range(2)]
    run.begin_step()
    return found


def mixed_cross_entropy(logits, labels, partner, lam):
    return lam * F.cross_entropy(logits, labels) + (1 - lam) * F.cross_entropy(logits, labels[partner])


def mix_logits(network, head, x):
    return head(network.forward_head(network.forward_features(x), pre_logits=True))


def gradients(loss: torch.Tensor, run: Run) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, run.parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(run.parameters, found, strict=True)]


@pytest.mark.parametrize("lam_encoding", [True, False])
def test_loss_and_gradient_are_those_of_the_formula(images, lam_encoding):
    """Every gradient goes where it belongs: the block learns from k and the area, q from its own two losses."""
    run, batch = make(images, AutoMix(lam_encoding=lam_encoding, mask_weight=3.0, mask_tolerance=0.0))
    enlarge(run)
    x, labels = batch.x, batch.target.single()
    (lam_m, partner_m), (lam_b, partner_b) = draws(run)
    assert 0.08 < lam_b < 0.92
    k, block = run.modules["average"], run.modules["mix_block"]
    with torch.no_grad():
        maps = k.body.stages[1](F.max_pool2d(k.body.stages[0](k.normalize(x)), 2))

    mask = block(maps, maps[partner_m], lam_m, (8, 8))
    x_m = x * (1 - mask) + x[partner_m] * mask
    generation = mixed_cross_entropy(
        mix_logits(k, run.modules["average_mix_head"], x_m), labels, labels[partner_m], lam_m
    )
    area = 3.0 * (1 - mask.mean() - lam_m).abs()
    assert area.detach() > 0
    with torch.no_grad():
        mask = block(maps, maps[partner_b], lam_b, (8, 8))
    x_b = x * (1 - mask) + x[partner_b] * mask
    classification = F.cross_entropy(run.model(x), labels) + mixed_cross_entropy(
        mix_logits(run.model, run.modules["mix_head"], x_b), labels, labels[partner_b], lam_b
    )

    found = run.procedure.loss(run, batch)
    assert_close(found, generation + area + classification)
    of_q = len(list(run.model.parameters())) + 2
    both = gradients(found, run)
    for one, other in zip(both[:of_q], gradients(classification, run)[:of_q], strict=True):
        assert_close(one, other, atol=1e-6, rtol=1e-4)
    for one, other in zip(both[of_q:], gradients(generation + area, run)[of_q:], strict=True):
        assert_close(one, other, atol=1e-6, rtol=1e-4)
        assert other.abs().max() > 0
    found.backward()
    for name in ("average", "average_mix_head"):
        assert all(p.grad is None and not p.requires_grad for p in run.modules[name].parameters())


def test_without_the_area_term_the_block_still_learns_from_the_average(images):
    run, batch = make(images, AutoMix(mask_weight=0.0))
    run.procedure.loss(run, batch).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in run.modules["mix_block"].value.parameters())


def test_full_margin_is_mixup_beside_clean_training(images):
    run, batch = make(images, AutoMix(margin=0.5))
    enlarge(run)
    labels = batch.target.single()
    lam, partner = draws(run)[1]
    x = mixup(batch.x, lam, partner)
    expected = F.cross_entropy(run.model(batch.x), labels) + mixed_cross_entropy(
        mix_logits(run.model, run.modules["mix_head"], x), labels, labels[partner], lam
    )
    of_q = len(list(run.model.parameters())) + 2
    found = gradients(run.procedure.loss(run, batch), run)[:of_q]
    for one, other in zip(found, gradients(expected, run)[:of_q], strict=True):
        assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_even_mask_is_mixup_bit_for_bit(images, seed):
    rng = torch.Generator().manual_seed(seed)
    x, partner = images.floats(torch.arange(12)), torch.randperm(12, generator=rng)
    lam = float(draw_beta(1.0, rng))
    own = x.new_full((1, 1, 1, 1), lam)
    assert torch.equal(mix_by_mask(x, x[partner], own), mixup(x, lam, partner))


def test_binary_mask_is_cutmix(images):
    rng = torch.Generator().manual_seed(0)
    x, partner = images.floats(torch.arange(12)), torch.randperm(12, generator=rng)
    box = draw_box((8, 8), 0.4, rng)
    own = torch.ones(12, 1, 8, 8)
    own[:, :, box.top : box.bottom, box.left : box.right] = 0
    assert 0 < own.mean() < 1
    assert torch.equal(mix_by_mask(x, x[partner], own), cutmix(x, box, partner))


def test_area_loss_is_zero_within_the_tolerance_and_has_a_constant_slope_outside():
    lam, weight, tolerance = 0.6, 0.1, 0.1
    for mean, slope in ((0.5, -1), (0.55, 0), (0.6, 0), (0.69, 0), (0.75, 1), (0.4, -1)):
        own = torch.full((4, 1, 3, 5), mean, dtype=torch.float64, requires_grad=True)
        loss = mask_area_loss(own.mean(), lam, weight, tolerance)
        expected = max(abs(mean - lam) - tolerance, 0.0)
        assert float(loss.detach()) == pytest.approx(weight * expected, abs=1e-12)
        if expected > 1e-12 or slope == 0:
            (gradient,) = torch.autograd.grad(loss, own)
            assert_close(gradient, torch.full_like(own, slope * weight / 60))


def test_before_the_first_step_average_and_model_agree_on_mixed_images(images):
    run, batch = make(images, AutoMix(), norm="batch")
    run.modules["average"].train()
    q = mix_logits(run.model, run.modules["mix_head"], batch.x)
    k = mix_logits(run.modules["average"], run.modules["average_mix_head"], batch.x)
    assert torch.equal(q, k)
    for one, other in zip(run.modules["average"].parameters(), run.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(run.modules["mix_head"].weight, run.model.get_classifier().weight)


class Memory(Part):
    """Weights of 1; remembers what it was shown."""

    def __init__(self):
        self.seen: list[tuple[int, torch.Tensor]] = []

    def __call__(self, losses, target, progress):
        self.seen.append((len(losses), target.dense(3)))
        return torch.ones(len(losses))


def test_reweight_sees_clean_and_mixed_samples_as_one_batch(images):
    reweight = Memory()
    run, batch = make(images, AutoMix(), reweight=reweight)
    lam, partner = draws(run)[1]
    run.procedure.loss(run, batch)
    ((size, shown),) = reweight.seen
    one_hot = F.one_hot(batch.target.single(), 3).float()
    assert size == 24
    assert_close(shown, torch.cat([one_hot, lam * one_hot + (1 - lam) * one_hot[partner]]))


class FeatureNorm(Part):
    """A loss that needs features, as some do."""

    traits = Traits(needs={"features": "takes their norm"})

    def __call__(self, logits, labels, features):
        return F.cross_entropy(logits, labels, reduction="none") + features.norm(dim=1)


@pytest.mark.parametrize("loss", [LogitClip(0.1), FeatureNorm()])
def test_any_loss_part_may_be_used(images, loss):
    run, batch = make(images, AutoMix(), loss=loss)
    plain, _ = make(images, AutoMix())
    run.begin_step()
    plain.begin_step()
    found = run.procedure.loss(run, batch)
    assert torch.isfinite(found)
    assert not torch.equal(found, plain.procedure.loss(plain, batch))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_resumes_bit_for_bit(images, assert_resumes, norm):
    assert_resumes(lambda: make(images, AutoMix(momentum=0.5, momentum_end=0.9), norm=norm)[0])


@pytest.mark.parametrize("size", [(8, 12), (9, 7), (6, 4)])
def test_images_of_any_size(size):
    labels = torch.arange(12) % 3
    pixels = torch.randint(0, 256, (12, 2, *size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    run, _ = make(Dataset.of(pixels, labels), AutoMix())
    fit(run)
    assert run.step == 2


def test_the_stage_may_be_chosen_and_a_timm_network_used(images):
    shapes = []
    for spec, stage in (("cnn_small:width=8", -1), ("timm:resnet18", -2)):
        run: Any = Run(build_model(spec, images), images, procedure=AutoMix(stage=stage), settings=SGD)
        shapes.append(run.modules["mix_block"].value.weight.shape[1])
        fit(run, max_steps=1)
    assert shapes == [17, 257]


@pytest.mark.parametrize(("spec", "stage"), [("cnn_small:width=8", 3), ("cnn_small:width=8", -4), ("timm:resnet18", 7)])
def test_a_stage_that_the_model_does_not_have_is_refused(images, spec, stage):
    with pytest.raises(SpecError, match=f"AutoMix cannot take stage {stage} of the model: .*"):
        Run(build_model(spec, images), images, procedure=AutoMix(stage=stage), settings=SGD)


def test_a_reduction_that_leaves_no_channel_is_refused(images):
    with pytest.raises(SpecError, match=r"reduction must be in \[1, 8\], since stage -3 has so many channels, got 9"):
        Run(build_model("cnn_small:width=8", images), images, procedure=AutoMix(stage=-3, reduction=9), settings=SGD)


def test_a_single_sample_is_its_own_partner(images):
    run, batch = make(images, AutoMix())
    alone = Batch.of(batch.x[:1], batch.target.single()[:1])
    found = run.procedure.loss(run, alone)
    assert torch.isfinite(found)


def test_a_step_trains_model_and_block_and_leaves_the_images(images):
    run, _ = make(images, AutoMix())
    before = [p.detach().clone() for p in run.parameters]
    x = images.inputs.fetch(torch.arange(12))
    kept = x.clone()
    train_step(run, torch.arange(12), x)
    assert torch.equal(x, kept)
    assert all(not torch.equal(p, q) for p, q in zip(before, run.parameters, strict=True))


def test_infinite_masks_stop_the_run(images):
    run, batch = make(images, AutoMix())
    nn.init.constant_(run.modules["mix_block"].value.weight, math.nan)
    with pytest.raises(NonFinite, match="AutoMix"):
        run.procedure.update(run, batch)


def test_what_it_cannot_work_with_is_refused(images, wine):
    with pytest.raises(Incompatible, match="AutoMix needs 'image'"):
        Run(build_model("mlp", wine), wine, procedure=AutoMix(), settings=SGD)
    with pytest.raises(Incompatible, match="AutoMix needs 'stage_features'"):
        Run(build_model("mlp", images), images, procedure=AutoMix(), settings=SGD)
    with pytest.raises(Incompatible, match="AutoMix needs 'hard_target'"):
        make(images, AutoMix(), transforms=[MixUp()])


BAD: list[tuple[Callable[[], AutoMix], str]] = [
    (lambda: AutoMix(alpha=0.0), "alpha must be > 0"),
    (lambda: AutoMix(momentum=0.99, momentum_end=0.9), "momentum <= momentum_end"),
    (lambda: AutoMix(momentum=-0.1), "momentum <= momentum_end"),
    (lambda: AutoMix(momentum_end=1.1), "momentum <= momentum_end"),
    (lambda: AutoMix(margin=0.6), r"margin must be in \[0, 0.5\]"),
    (lambda: AutoMix(mask_weight=-1.0), "mask_weight must be >= 0"),
    (lambda: AutoMix(mask_tolerance=1.5), "mask_tolerance must be in"),
    (lambda: AutoMix(reduction=0), "reduction must be at least 1"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
