"""AutoMix: which of its two mixed batches the margin touches, and whom each loss may train."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.fit import train_step
from weathered.core.rng import draw_beta
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.nn.build import build_model
from weathered.procedures.automix import AutoMix

BLOCK, TRAINED = ("mix_block",), ("model", "mix_head")
AVERAGES = ("average", "average_mix_head")


def make(images, **options) -> Run:
    """A run whose masks are far from even and whose average differs from the model."""
    run = Run(
        build_model("cnn_small:width=8,norm=none", images),
        images,
        procedure=AutoMix(**{"mask_weight": 0.0, **options}),
        settings=Settings(epochs=50, batch_size=12, lr=0.05),
    )
    torch.manual_seed(0)
    for parameter in run.modules["mix_block"].parameters():
        nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        for parameter in run.modules["average"].parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return run


def pairs_at(run: Run, step: int) -> tuple[float, float]:
    """The shares that a step draws, for the block and for the classifier."""
    run.step = step
    run.begin_step()
    rng, found = run.generator("automix", shared=True), []
    for _ in range(2):
        found.append(float(draw_beta(2.0, rng)))
        torch.randperm(12, generator=rng)
    run.begin_step()
    return found[0], found[1]


def step_where(run: Run, block_extreme: bool, classifier_extreme: bool) -> int:
    def extreme(lam: float) -> bool:
        return min(lam, 1 - lam) <= 0.2

    wanted = (block_extreme, classifier_extreme)
    return next(s for s in range(200) if tuple(map(extreme, pairs_at(run, s))) == wanted)


def gradients(run: Run, images, names: tuple[str, ...]) -> list[torch.Tensor]:
    """Of the whole loss at the run's step, for the parameters of some modules; zeros where there is none."""
    run.begin_step()
    loss = run.procedure.loss(run, Batch.of(images.floats(torch.arange(12)), images.labels[:12]))
    modules = {"model": run.model, **run.modules}
    parameters = [p for name in names for p in modules[name].parameters()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("block_extreme", [False, True])
@pytest.mark.parametrize("classifier_extreme", [False, True])
def test_the_margin_touches_the_classifiers_pair_only_and_only_where_its_share_is_extreme(
    images, block_extreme, classifier_extreme
):
    learned, even = make(images, margin=0.0), make(images, margin=0.2)
    learned.step = even.step = step_where(learned, block_extreme, classifier_extreme)
    assert equal(gradients(learned, images, BLOCK), gradients(even, images, BLOCK))
    assert equal(gradients(learned, images, TRAINED), gradients(even, images, TRAINED)) != classifier_extreme
    assert any(g.abs().max() > 0 for g in gradients(even, images, BLOCK))


def test_the_margin_includes_its_end(images):
    run = make(images, margin=0.0)
    lam = pairs_at(run, 0)[1]
    margin = min(lam, 1 - lam)
    learned, at, below = (make(images, margin=m) for m in (0.0, margin, margin - 1e-9))
    assert equal(gradients(below, images, TRAINED), gradients(learned, images, TRAINED))
    assert not equal(gradients(at, images, TRAINED), gradients(learned, images, TRAINED))


def test_only_the_classifier_learns_where_the_average_is_blind(images):
    """The average's head for mixed images at 0 leaves the block no gradient, and the model all of its own."""
    run, seeing = make(images), make(images)
    for parameter in run.modules["average_mix_head"].parameters():
        nn.init.zeros_(parameter)
    assert all((g == 0).all() for g in gradients(run, images, BLOCK))
    assert equal(gradients(run, images, TRAINED), gradients(seeing, images, TRAINED))


def test_only_the_block_learns_where_the_model_is_blind(images):
    """The model's heads at 0 give its features no gradient; the block still learns, from the average alone."""
    run, seeing = make(images), make(images)
    for head in (run.model.get_classifier(), run.modules["mix_head"]):  # pyright: ignore[reportCallIssue]
        nn.init.zeros_(head.weight)
    body = gradients(run, images, ("model",))[:-2]
    assert all((g == 0).all() for g in body)
    assert equal(gradients(run, images, BLOCK), gradients(seeing, images, BLOCK))


def test_the_optimizer_never_holds_the_averages(images):
    run = make(images, momentum=1.0, momentum_end=1.0)
    frozen = [p for name in AVERAGES for p in run.modules[name].parameters()]
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in frozen}
    before = [p.clone() for p in frozen]
    for _ in range(3):
        train_step(run, torch.arange(12), images.inputs.fetch(torch.arange(12)))
    assert all(p.grad is None for p in frozen)
    for p, q in zip(frozen, before, strict=True):
        assert_close(p, q, atol=0, rtol=0)
