"""JoCoR in a run: the limits that reduce it to plain training, what it weighs, and what it refuses."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.errors import Incompatible, NonFinite
from weathered.core.facts import Traits
from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.roles import Part
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.makers.symmetric_noise import SymmetricNoise
from weathered.losses.logitclip import LogitClip
from weathered.nn.build import build_model
from weathered.procedures.jocor import JoCoR, jeffreys_divergence, jocor_losses, smallest

ADAM = Settings(epochs=2, batch_size=12, optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="constant")


def supervised(first: torch.Tensor, second: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(first, labels, reduction="none") + F.cross_entropy(second, labels, reduction="none")


def joint(first: torch.Tensor, second: torch.Tensor, labels: torch.Tensor, co_lambda: float) -> torch.Tensor:
    return jocor_losses(supervised(first, second, labels), first, second, co_lambda)


def test_joint_step_in_double_precision_is_two_steps():
    torch.manual_seed(0)
    x, labels = torch.randn(40, 6, dtype=torch.float64), torch.arange(40) % 3
    nets = [nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double() for _ in range(2)]
    apart = copy.deepcopy(nets)
    together = torch.optim.Adam([p for net in nets for p in net.parameters()], lr=1e-2)
    separate = [torch.optim.Adam(net.parameters(), lr=1e-2) for net in apart]
    for _ in range(30):
        together.zero_grad()
        losses = joint(nets[0](x), nets[1](x), labels, 0.0)
        losses[smallest(losses, 1.0)].mean().backward()
        together.step()
        for net, optimizer in zip(apart, separate, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(net(x), labels).backward()
            optimizer.step()
    for one, other in zip(nets, apart, strict=True):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            assert_close(p, q, atol=1e-12, rtol=0)


def test_run_without_agreement_or_dropping_is_two_supervised_runs(images):
    model = build_model("mlp:width=16", images)
    run = Run(copy.deepcopy(model), images, procedure=JoCoR(0.0, 0.0), settings=ADAM)
    peer = copy.deepcopy(run.modules["peer"])
    fit(run)
    for start, trained in ((model, run.model), (peer, run.modules["peer"])):
        alone = fit(Run(start, images, settings=ADAM))
        for p, q in zip(alone.model.parameters(), trained.parameters(), strict=True):
            assert_close(p, q, atol=1e-6, rtol=0)


class Memory(Part):
    """Weights 1 + label; remembers how many losses it was shown, and their largest."""

    def __init__(self):
        self.seen: list[tuple[int, float]] = []

    def __call__(self, losses, target, progress):
        self.seen.append((len(losses), float(losses.detach().max())))
        return 1.0 + target.single()


def test_reweight_sees_the_batch_and_weighs_the_kept_rows(images):
    reweight = Memory()
    run = Run(
        build_model("mlp:width=16", images),
        images,
        procedure=JoCoR(0.3, 0.5, ramp=0.0),
        reweight=reweight,
        settings=ADAM,
    )
    batch = Batch.of(images.floats(torch.arange(12)), images.labels[:12])
    first, second = run.model(batch.x), run.modules["peer"](batch.x)
    losses = joint(first, second, images.labels[:12], 0.3)
    kept = smallest(losses, 0.5)
    expected = ((1 + images.labels[:12]) * losses)[kept].sum() / 6
    assert_close(run.procedure.loss(run, batch), expected)
    assert reweight.seen == [(12, pytest.approx(float(losses.detach().max())))]


def test_any_loss_part_is_the_supervised_loss(images):
    model = build_model("mlp:width=16", images)
    run = Run(model, images, procedure=JoCoR(0.0, 0.0), loss=LogitClip(0.1), settings=ADAM)
    batch = Batch.of(images.floats(torch.arange(12)), images.labels[:12])
    clip = LogitClip(0.1)
    expected = clip(run.model(batch.x), images.labels[:12]) + clip(run.modules["peer"](batch.x), images.labels[:12])
    assert_close(run.procedure.loss(run, batch), expected.mean())


def test_networks_start_apart_and_training_pulls_them_together(images):
    settings = Settings(epochs=10, batch_size=12, lr=0.05, weight_decay=0.0)
    gaps = {}
    for co_lambda in (0.0, 0.9):
        run = Run(build_model("mlp:width=16", images), images, procedure=JoCoR(co_lambda, 0.0), settings=settings)
        first, second = run.model.state_dict(), run.modules["peer"].state_dict()
        assert not torch.equal(first["head.weight"], second["head.weight"])
        fit(run)
        x = images.floats(torch.arange(48))
        gaps[co_lambda] = float(jeffreys_divergence(run.model(x), run.modules["peer"](x)).detach().mean())
    assert gaps[0.9] < 0.5 * gaps[0.0]


@pytest.mark.slow
def test_half_of_the_labels_wrong(digits):
    """The two networks memorise less than half of what one does, and rank right labels first."""
    noisy = SymmetricNoise(0.5)(digits.select(torch.arange(1000)), torch.Generator().manual_seed(0))
    wrong = noisy.labels != noisy.clean_labels
    settings = Settings(
        epochs=60, batch_size=100, optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="constant", seed=1
    )
    memorised = {}
    for procedure in (Procedure(), JoCoR(0.85, 0.5, ramp=0.15)):
        run = fit(Run(build_model("mlp", noisy), noisy, procedure=procedure, settings=settings))
        hits = run.predict(noisy).argmax(1) == noisy.labels
        memorised[type(procedure).__name__] = float(hits[wrong].double().mean())
    assert memorised["JoCoR"] < 0.5 * memorised["Procedure"]
    x = noisy.floats(torch.arange(1000))
    with torch.no_grad():
        losses = joint(run.model(x), run.modules["peer"](x), noisy.labels, 0.85)
    assert float((~wrong)[smallest(losses, 0.5)].double().mean()) > 0.8


def test_resumes_bit_for_bit(images, assert_resumes):
    assert_resumes(
        lambda: Run(
            build_model("cnn_small:width=8", images), images, procedure=JoCoR(0.5, 0.3, ramp=0.5), settings=ADAM
        )
    )


def test_predictor_is_the_first_network(images):
    run = Run(build_model("mlp:width=16", images), images, procedure=JoCoR(), settings=ADAM)
    assert run.procedure.predictor(run) is run.model


def test_a_model_function_that_ignores_its_seed_is_refused(images):
    with pytest.raises(ValueError, match="same weights"):
        Run(lambda seed: build_model("mlp:width=16", images, seed=1), images, procedure=JoCoR(), settings=ADAM)
    Run(lambda seed: build_model("mlp:width=16", images, seed=seed), images, procedure=JoCoR(), settings=ADAM)


def test_infinite_losses_stop_the_run_and_are_not_dropped(images):
    model = build_model("mlp:width=16", images)
    run = Run(model, images, procedure=JoCoR(0.5, 0.5, ramp=0.0), settings=ADAM)
    x = images.floats(torch.arange(12))
    x[3] = math.nan
    with pytest.raises(NonFinite, match="JoCoR"):
        run.procedure.loss(run, Batch.of(x, images.labels[:12]))
    with pytest.raises(ValueError, match="position 1"):
        smallest(torch.tensor([0.0, math.nan, 1.0]), 0.5)


def test_mixed_labels_are_refused(images):
    class Mix(Part):
        traits = Traits(breaks={"hard_target": "mixes labels"})

        def __call__(self, batch, rng):
            return batch

    with pytest.raises(Incompatible, match="JoCoR needs 'hard_target'"):
        Run(build_model("mlp", images), images, procedure=JoCoR(), transforms=[Mix()], settings=ADAM)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"co_lambda": 1.1}, "co_lambda"),
        ({"co_lambda": math.nan}, "co_lambda"),
        ({"forget_rate": 1.0}, "forget_rate"),
        ({"forget_rate": -0.1}, "forget_rate"),
        ({"ramp": 1.5}, "ramp"),
        ({"exponent": 0.0}, "exponent"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, name):
    with pytest.raises(ValueError, match=f"^{name} must be in"):
        JoCoR(**arguments)
