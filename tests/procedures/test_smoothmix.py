"""SmoothMix in a run: the loss and its gradient, the limit that is noise training, chunks, and refusals."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.errors import Incompatible
from weathered.core.fit import fit, train_step
from weathered.core.roles import Part
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.losses.logitclip import LogitClip
from weathered.nn.build import build_model
from weathered.procedures.smoothmix import (
    SmoothMix,
    mean_probability,
    noisy_copies,
    project,
    smooth_attack,
)

SGD = Settings(epochs=2, batch_size=12, lr=0.05)


def run_and_batch(images, procedure: SmoothMix, step: int = 4, model: str = "mlp:width=16") -> tuple[Run, Batch]:
    """A run halfway through training, where the mixture has its full weight."""
    run = Run(build_model(model, images), images, procedure=procedure, settings=SGD)
    run.step = step
    return run, Batch.of(images.floats(torch.arange(12)), images.labels[:12])


def noise_of(run: Run, batch: Batch, procedure: SmoothMix, chunk: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    run.begin_step()
    shape = (procedure.num_noise, *batch.x.shape)
    noise = procedure.sigma * torch.randn(shape, generator=run.generator(f"smoothmix noise {chunk}"))
    lam = torch.rand(len(batch), generator=run.generator(f"smoothmix share {chunk}")) / 2
    run.begin_step()
    return noise, lam


def gradients(run: Run, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(run.model.parameters())))


def test_without_the_mixture_it_is_noise_training(images):
    procedure = SmoothMix(num_noise=3, eta=0.0)
    run, batch = run_and_batch(images, procedure)
    noise, _ = noise_of(run, batch, procedure)
    losses = [F.cross_entropy(run.model(batch.x + noise[i]), batch.target.single()) for i in range(3)]
    expected = torch.stack(losses).mean()
    found = run.procedure.loss(run, batch)
    assert_close(found, expected, atol=1e-6, rtol=0)
    for one, other in zip(gradients(run, found), gradients(run, expected), strict=True):
        assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mix_step", [0, 1])
def test_loss_and_gradient_are_those_of_the_formula(images, mix_step):
    """Written out noise by noise: one draw for all passes, wrong rows left out, nothing detached."""
    procedure = SmoothMix(num_noise=3, attack_steps=2, eta=5.0, mix_step=mix_step, warmup=0.8)
    run, batch = run_and_batch(images, procedure)
    fit(run, max_steps=2)
    x, labels = batch.x, batch.target.single()
    noise, lam = noise_of(run, batch, procedure)
    weight = 6 / 8 / 0.8
    assert run.step == 6

    path = smooth_attack(run.model.eval(), x, labels, noise, 2, 0.5)
    run.model.train()
    start = project(path[mix_step], x, weight * 0.5 * mix_step).clamp(0, 1)
    logits = [run.model(start + noise[i]) for i in range(3)]
    mean = torch.stack([z.softmax(1) for z in logits]).mean(0)
    lam_x = lam[:, None, None, None]
    mixed = (1 - lam_x) * start + lam_x * path[-1]
    target = (1 - lam[:, None]) * mean + lam[:, None] / 3
    divergence = [(target * (target.log() - run.model(mixed + noise[i]).log_softmax(1))).sum(1) for i in range(3)]
    right = mean.argmax(1) == labels
    assert right.any()
    assert not right.all()
    expected = torch.stack([F.cross_entropy(z, labels) for z in logits]).mean()
    expected = expected + 5.0 * weight * (torch.stack(divergence) * right).mean()

    found = run.procedure.loss(run, batch)
    assert_close(found, expected)
    for one, other in zip(gradients(run, found), gradients(run, expected), strict=True):
        assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_sample_predicted_wrongly_contributes_cross_entropy_only(images):
    runs = [run_and_batch(images, SmoothMix(eta=eta, warmup=0.0)) for eta in (0.0, 5.0)]
    grads = []
    for run, batch in runs:
        noise, _ = noise_of(run, batch, SmoothMix())
        predicted = mean_probability(run.model(noisy_copies(batch.x, noise)), 2).argmax(1)
        wrong = Batch.of(batch.x, (predicted + 1) % 3)
        grads.append(gradients(run, run.procedure.loss(run, wrong)))
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_attack_in_evaluation_mode_and_losses_in_training_mode(images):
    run, batch = run_and_batch(images, SmoothMix(warmup=0.0), model="cnn_small:width=8")
    modes: list[bool] = []
    norm = next(m for m in run.model.modules() if isinstance(m, nn.BatchNorm2d))
    norm.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    run.procedure.loss(run, batch)
    assert modes == [False] * 4 + [True] * 2
    assert run.model.training


def test_mixture_sets_in_linearly():
    procedure = SmoothMix(warmup=0.2)
    assert [procedure.strength(p) for p in (0.0, 0.05, 0.1, 0.2, 1.0)] == pytest.approx([0, 0.25, 0.5, 1, 1])
    assert SmoothMix(warmup=0.0).strength(0.0) == 1.0


def test_chunks_use_every_sample_once_with_noise_of_their_own(images):
    procedure = SmoothMix(num_noise=5, eta=0.0, chunked=True)
    run, batch = run_and_batch(images, procedure)
    seen, begun = [], run.model.forward

    def remember(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach().clone())
        return begun(x)

    run.model.forward = remember
    steps = [0]
    run.optimizer.register_step_post_hook(lambda *_: steps.append(len(seen)))
    run.procedure.update(run, batch)
    assert steps == [0, 1, 2, 3, 4, 5]
    assert [len(x) for x in seen] == [15, 15, 10, 10, 10]
    noise = torch.cat([x - part.repeat(5, 1, 1, 1) for x, part in zip(seen, batch.x.tensor_split(5), strict=True)])
    assert_close(noise.std(), torch.tensor(0.25), atol=0.02, rtol=0)
    assert len(noise.flatten(1)[:, 0].unique()) == 60


def test_noise_does_not_depend_on_the_transforms_and_is_new_in_each_step(images):
    run, batch = run_and_batch(images, SmoothMix(warmup=0.0))
    run.begin_step()
    first = run.procedure.loss(run, batch)
    run.begin_step()
    assert torch.equal(run.procedure.loss(run, batch), first)
    run.step += 1
    run.begin_step()
    assert not torch.equal(run.procedure.loss(run, batch), first)


@pytest.mark.parametrize("chunked", [False, True])
def test_resumes_bit_for_bit(images, assert_resumes, chunked):
    assert_resumes(
        lambda: Run(
            build_model("cnn_small:width=8", images),
            images,
            procedure=SmoothMix(attack_steps=2, mix_step=1, warmup=0.5, chunked=chunked),
            settings=SGD,
        )
    )


@pytest.mark.parametrize(("value", "shown"), [(1.01, "1.01"), (-0.01, "-0.01"), (math.nan, "nan")])
def test_inputs_outside_the_unit_range_are_refused(images, value, shown):
    run, batch = run_and_batch(images, SmoothMix())
    x = batch.x.clone()
    x[3, 0, 2, 2] = value
    with pytest.raises(ValueError, match=rf"\[0, 1\], got .*{shown}"):
        run.procedure.loss(run, Batch.of(x, batch.target))


class Silent(Part):
    def __call__(self, *arguments):
        raise AssertionError("must not be called")


@pytest.mark.parametrize(
    "parts", [{"loss": LogitClip()}, {"reweight": Silent()}, {"terms": [Silent()]}], ids=["loss", "reweight", "term"]
)
def test_slots_it_never_calls_are_refused(images, parts):
    with pytest.raises(Incompatible, match="which SmoothMix never calls"):
        Run(build_model("mlp", images), images, procedure=SmoothMix(), settings=SGD, **parts)


def test_tables_are_refused(wine):
    with pytest.raises(Incompatible, match="SmoothMix needs 'range01'"):
        Run(build_model("mlp", wine), wine, procedure=SmoothMix(), settings=SGD)


def test_one_step_changes_the_weights_and_not_the_data(images):
    run = Run(build_model("mlp:width=16", images), images, procedure=SmoothMix(), settings=SGD)
    before = [p.detach().clone() for p in run.model.parameters()]
    x = images.inputs.fetch(torch.arange(12))
    kept = x.clone()
    train_step(run, torch.arange(12), x)
    assert torch.equal(x, kept)
    assert not any(torch.equal(p, q) for p, q in zip(before, run.model.parameters(), strict=True))


BAD: list[tuple[Callable[[], SmoothMix], str]] = [
    (lambda: SmoothMix(sigma=0.0), "sigma must be > 0"),
    (lambda: SmoothMix(sigma=math.nan), "sigma must be > 0"),
    (lambda: SmoothMix(num_noise=0), "num_noise must be at least 1"),
    (lambda: SmoothMix(attack_steps=0), "attack_steps must be at least 1"),
    (lambda: SmoothMix(step_size=0.0), "step_size must be > 0"),
    (lambda: SmoothMix(eta=-1.0), "eta must be >= 0"),
    (lambda: SmoothMix(attack_steps=2, mix_step=2), r"mix_step must be in \[0, 2\)"),
    (lambda: SmoothMix(mix_step=-1), "mix_step must be in"),
    (lambda: SmoothMix(warmup=1.5), "warmup must be in"),
    (lambda: SmoothMix(max_norm=0.0), "max_norm must be > 0"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
