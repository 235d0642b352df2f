"""The probe of susceptibility leaves no trace, and its drop is that of a step really taken."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from weathered.audit.susceptibility import probe, random_labels, running_mean

RNG = torch.Generator().manual_seed(0)
IMAGES, GIVEN = torch.rand(96, 1, 6, 6, generator=RNG), torch.randint(4, (96,), generator=RNG)
RANDOM = random_labels(96, 4, RNG)

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "adamw, several tensors at once": lambda p: torch.optim.AdamW(p, 1e-2, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.5),
}


def network(seed: int = 0) -> nn.Sequential:
    """Batch normalisation, dropout and a buffer that no state dict holds."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 4)
    )
    model.register_buffer("hidden", torch.ones(3), persistent=False)
    return model


def perceptron(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 4)).to(dtype)


def train(name: str, probes: bool):
    """Three epochs of an ordinary loop that draws order and dropout from torch's generator."""
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    loader = DataLoader(TensorDataset(IMAGES, GIVEN), batch_size=24, shuffle=True)
    drops = []
    for _ in range(3):
        if probes:
            drops.append(probe(model, optimizer, IMAGES[:50], RANDOM[:50]))
        for x, y in loader:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        schedule.step()
    return model, optimizer, schedule, torch.get_rng_state(), drops


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """All tensors of a network and of its optimizer, and the state of torch's generator, copied."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    named |= {f"grad of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    for i, state in optimizer.state_dict()["state"].items():
        named |= {f"{key} of {i}": value for key, value in state.items() if isinstance(value, torch.Tensor)}
    found = {name: tensor.detach().clone() for name, tensor in named.items()}
    return {**found, "generator": torch.get_rng_state()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].equal(tensor), name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_with_probes_is_training_without_bit_for_bit(name):
    *probed, drops = train(name, True)
    *plain, _ = train(name, False)
    assert_same(everything(*probed[:2]), everything(*plain[:2]))
    assert torch.equal(probed[3], plain[3])
    assert probed[2].state_dict() == plain[2].state_dict()
    assert all(abs(drop) > 1e-4 for drop in drops)


@pytest.mark.parametrize("trained", [False, True])
def test_one_probe_leaves_everything_where_it_was(trained):
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    if trained:
        cross_entropy(model(IMAGES), GIVEN).backward()
        optimizer.step()
        model[5].weight.grad = None
    model[1].eval()
    before, modes = everything(model, optimizer), [module.training for module in model.modules()]
    held = [(p, p.grad) for p in model.parameters()], list(optimizer.param_groups)
    assert probe(model, optimizer, IMAGES, RANDOM) != 0
    assert_same(everything(model, optimizer), before)
    assert [module.training for module in model.modules()] == modes
    assert all(p is q and p.grad is g for (p, g), q in zip(held[0], model.parameters(), strict=True))
    assert all(group is kept for group, kept in zip(optimizer.param_groups, held[1], strict=True))
    assert bool(optimizer.state) == trained


def test_a_probe_that_fails_leaves_no_trace_either():
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    before = everything(model, optimizer)
    for inputs, labels in ((IMAGES[:, :, :4], RANDOM), (IMAGES, RANDOM + 1)):
        with pytest.raises((RuntimeError, ValueError)):
            probe(model, optimizer, inputs, labels)
        assert_same(everything(model, optimizer), before)
        assert not optimizer.state


def test_a_probe_is_no_step_to_a_schedule():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    probe(model, optimizer, IMAGES, RANDOM)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        schedule.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_drop_is_that_of_the_step_really_taken(name):
    """Also: both losses in training mode, old gradients dropped, momentum and weight decay in the step."""
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    cross_entropy(model(IMAGES[:40]), GIVEN[:40]).backward()
    optimizer.step()
    model.eval()
    drop = probe(model, optimizer, IMAGES, RANDOM)
    model.train()
    before = cross_entropy(model(IMAGES), RANDOM)
    optimizer.zero_grad()
    before.backward()
    optimizer.step()
    after = cross_entropy(model(IMAGES), RANDOM)
    assert drop == before.item() - after.item()


def test_without_rate_or_gradient_there_is_no_drop():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    still = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    assert abs(probe(model, still, IMAGES, RANDOM)) < 1e-7
    moving = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    assert abs(probe(model, moving, IMAGES, RANDOM)) > 1e-3
    assert abs(probe(model, moving, IMAGES, RANDOM, probe_lr=0.0)) < 1e-7
    model.requires_grad_(False)
    frozen = [probe(model, moving, IMAGES, RANDOM) for _ in range(3)]
    assert max(map(abs, frozen)) < 1e-7
    assert max(map(abs, running_mean(frozen))) < 1e-7


def test_a_small_step_of_gradient_descent_drops_by_rate_times_squared_gradient():
    model = perceptron(torch.float64)
    x = IMAGES.double()
    gradient = torch.autograd.grad(cross_entropy(model(x), RANDOM), list(model.parameters()))
    expected = 1e-4 * sum(float(g.square().sum()) for g in gradient)
    assert expected > 1e-6
    assert probe(model, torch.optim.SGD(model.parameters(), 1e-4), x, RANDOM) == pytest.approx(expected, rel=1e-2)
    wider = probe(model, torch.optim.SGD(model.parameters(), 1.0), x, RANDOM)
    assert wider != pytest.approx(1e4 * expected, rel=1e-2)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.02)])
def test_a_linear_softmax_model_has_a_closed_form(momentum, decay):
    x, y, rate = IMAGES.flatten(1).double(), one_hot(RANDOM, 4).double(), 0.7
    model = nn.Linear(36, 4, bias=False).double()
    w = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=momentum, weight_decay=decay)
    velocity = torch.full_like(w, 0.03)
    if momentum:
        optimizer.state[model.weight]["momentum_buffer"] = velocity.clone()
    gradient = ((x @ w.T).softmax(1) - y).T @ x / len(x) + decay * w
    moved = w - rate * (gradient + momentum * velocity)

    def loss(weight: torch.Tensor) -> float:
        return float(-(y * (x @ weight.T).log_softmax(1)).sum(1).mean())

    expected = loss(w) - loss(moved)
    assert abs(expected) > 1e-3
    assert probe(model, optimizer, x, RANDOM) == pytest.approx(expected, abs=1e-6)


def test_a_rate_of_its_own_makes_the_drop_independent_of_the_runs_optimizer():
    model = perceptron()
    one, other = OPTIMIZERS["adam"](model.parameters()), torch.optim.SGD(model.parameters(), 1e-3)
    drops = [probe(model, optimizer, IMAGES, RANDOM, probe_lr=0.2) for optimizer in (one, other)]
    plain = probe(model, torch.optim.SGD(model.parameters(), 0.2), IMAGES, RANDOM)
    assert drops == [plain, plain]
    assert probe(model, other, IMAGES, RANDOM) < plain / 20


def test_logits_can_be_brought_to_the_scale_of_training():
    model = perceptron()
    big = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in big[3].parameters():
            parameter.mul_(1000)
    huge = probe(big, torch.optim.SGD(big.parameters(), 0.1), IMAGES, RANDOM, probe_lr=1e-6)
    scaled = probe(
        big, torch.optim.SGD(big.parameters(), 0.1), IMAGES, RANDOM, probe_lr=1e-6, to_logits=lambda z: z / 1000
    )
    same = nn.Sequential(*big, Divide(1000))
    assert scaled == probe(same, torch.optim.SGD(same.parameters(), 0.1), IMAGES, RANDOM, probe_lr=1e-6)
    assert abs(huge) > 100 * abs(scaled)


class Divide(nn.Module):
    def __init__(self, by: float):
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / self.by


def test_mixed_precision_sees_the_step():
    """The copies in half precision that autocast keeps of the old weights must not serve for the new ones."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    expected = probe(model, optimizer, IMAGES, RANDOM)
    with torch.autocast("cpu", torch.bfloat16):
        found = probe(model, optimizer, IMAGES, RANDOM)
    assert expected > 5e-3
    assert found != expected
    assert_close(found, expected, rtol=0.2, atol=0)


def test_it_works_where_gradients_are_switched_off():
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    expected = probe(model, optimizer, IMAGES, RANDOM)
    with torch.no_grad():
        assert probe(model, optimizer, IMAGES, RANDOM) == expected


@pytest.mark.parametrize("where", ["after", "before"])
def test_a_loss_that_is_not_finite_is_nan_with_a_warning(where):
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), 1e30 if where == "after" else 0.1)
    inputs = IMAGES if where == "after" else IMAGES / 0
    before = everything(model, optimizer)
    with pytest.warns(UserWarning, match="recorded as NaN and left out of the mean"):
        assert math.isnan(probe(model, optimizer, inputs, RANDOM))
    assert_same(everything(model, optimizer), before)


def test_what_cannot_be_probed_is_refused():
    model, other = perceptron(), perceptron()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    binary = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    for match, call in {
        "at least 2 classes, got shape (96, 1)": lambda: probe(
            binary, torch.optim.SGD(binary.parameters(), 0.1), IMAGES, RANDOM
        ),
        "labels must be in [0, 3], got 0..7": lambda: probe(model, optimizer, IMAGES, RANDOM * 7 // 3),
        "one label for each input, at least one, got 95 and 96": lambda: probe(model, optimizer, IMAGES, RANDOM[1:]),
        "at least one, got 0 and 0": lambda: probe(model, optimizer, IMAGES[:0], RANDOM[:0]),
        "holds no parameter of the model": lambda: probe(other, optimizer, IMAGES, RANDOM),
        "probe_lr must be >= 0 and finite, got -1": lambda: probe(model, optimizer, IMAGES, RANDOM, probe_lr=-1),
        "probe_lr must be >= 0 and finite, got nan": lambda: probe(model, optimizer, IMAGES, RANDOM, probe_lr=math.nan),
        "random labels need at least 2 classes, got 1": lambda: random_labels(5, 1, RNG),
    }.items():
        with pytest.raises(ValueError, match=re.escape(match)):
            call()


def test_random_labels_are_uniform_over_all_classes():
    labels = random_labels(100_000, 5, torch.Generator().manual_seed(3))
    assert labels.dtype == torch.int64
    assert_close(labels.bincount() / 1e5, torch.full((5,), 0.2), atol=0.005, rtol=0)
    assert torch.equal(labels, random_labels(100_000, 5, torch.Generator().manual_seed(3)))
