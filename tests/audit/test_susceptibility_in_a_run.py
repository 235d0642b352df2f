"""The probe in a run: training goes on as without it, it resumes bit for bit, and its figures reach the metrics."""

import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from scaled import Multiplied, Scaled
from weathered.assemble import build_parts, resolve
from weathered.audit.susceptibility import Susceptibility
from weathered.augment.crop_flip import CropFlip
from weathered.core.errors import Incompatible, SpecError
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.mixing.mixup import MixUp
from weathered.procedures.jocor import JoCoR

STILL = Settings(epochs=4, batch_size=40, lr=1e-30, weight_decay=0.0)
"""Training that moves nothing, so that drops differ by their batches only."""


def network(seed: int = 0) -> nn.Module:
    """With batch normalisation and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 10)
    )


def flat(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def state_of(run: Run) -> dict[str, torch.Tensor]:
    modules = {"model": run.model, **run.modules}
    found = {f"{name} {key}": value for name, m in modules.items() for key, value in m.state_dict().items()}
    for i, state in run.optimizer.state_dict()["state"].items():
        found |= {f"{i} {key}": value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return {**found, "generator": torch.get_rng_state()}


PARTS = {
    "plain": dict,
    "augmented and mixed": lambda: {"transforms": [CropFlip(), MixUp()]},
    "two networks": lambda: {"procedure": JoCoR(0.3), "transforms": [CropFlip()]},
    "adam": lambda: {"settings": Settings(epochs=3, batch_size=64, optimizer="adam", lr=1e-2)},
    "rate of its own": lambda: {"probe": Susceptibility(64, probe_lr=0.1)},
    "half precision": lambda: {"settings": Settings(epochs=3, batch_size=64, precision="bf16-mixed")},
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.filterwarnings("ignore:this cpu has no bfloat16")
def test_training_with_the_probe_is_training_without_it(small_digits, name):
    parts = {"settings": Settings(epochs=3, batch_size=64), "probe": Susceptibility(64), **PARTS[name]()}
    with torch.random.fork_rng():
        watched = state_of(fit(Run(network(), small_digits, **parts)))
    watch = parts.pop("probe")
    fresh = PARTS[name]()
    fresh.pop("probe", None)
    with torch.random.fork_rng():
        plain = state_of(fit(Run(network(), small_digits, **{"settings": parts["settings"], **fresh})))
    assert watched.keys() == plain.keys()
    for key, value in plain.items():
        assert watched[key].equal(value), key
    assert len(watch.drops) == 3
    assert all(abs(drop) > 1e-4 for drop in watch.drops)


def first_drop(data: Dataset, watch: Susceptibility, model: nn.Module | None = None, **parts) -> float:
    fit(Run(flat() if model is None else model, data, probe=watch, **{"settings": STILL, **parts}), max_steps=1)
    return watch.drops[0]


def test_the_first_drop_is_that_of_the_network_as_it_begins(small_digits):
    """By the step that would come first, at its learning rate, and blind to the training labels."""
    warming = Settings(epochs=2, batch_size=50, lr=0.5, warmup=0.5, weight_decay=0.0)
    turned = small_digits.replace(labels=small_digits.labels.flip(0))
    drops = [first_drop(data, Susceptibility(200), settings=warming) for data in (small_digits, turned)]
    assert drops[0] == drops[1]
    assert warming.learning_rate(0.0, 1 / 8) == 0.125
    by_rate = {rate: first_drop(small_digits, Susceptibility(200, probe_lr=rate)) for rate in (0.125, 0.5)}
    assert drops[0] == by_rate[0.125]
    assert drops[0] < 0.5 * by_rate[0.5]


def inputs_seen(data: Dataset, watch: Susceptibility, **parts) -> list[torch.Tensor]:
    """What the network saw in the first pass of each probe."""
    model, seen = flat(), []

    def remember(module, inputs):
        if torch.is_grad_enabled() and len(inputs[0]) == watch.batch:
            seen.append(inputs[0])

    model.register_forward_pre_hook(remember)
    fit(Run(model, data, probe=watch, **{"settings": STILL, **parts}))
    return seen


def rows_of(x: torch.Tensor, data: Dataset) -> list[int]:
    """The rows of a data set without duplicates that these inputs are; -1 for what is none of them."""
    every = data.floats(torch.arange(len(data)))
    equal = (x[:, None] == every[None]).flatten(2).all(2)
    return [int(row.nonzero()[0]) if row.any() else -1 for row in equal]


def test_each_epoch_has_other_inputs_unmixed(small_digits):
    seen = inputs_seen(small_digits, Susceptibility(30), transforms=[MixUp()])
    assert len(seen) == 4
    rows = [rows_of(x, small_digits) for x in seen]
    assert all(min(found) >= 0 and len(set(found)) == 30 for found in rows)
    assert len({tuple(sorted(found)) for found in rows}) == 4


def test_inputs_are_augmented(small_digits):
    (first, *_) = inputs_seen(small_digits, Susceptibility(30), transforms=[CropFlip()])
    assert min(rows_of(first, small_digits)) == -1


def test_each_input_keeps_its_label(small_digits):
    """On all inputs, in whatever order, the drop of a network at rest is always the same; on some it is not."""
    whole, some = (Susceptibility(size, probe_lr=0.5) for size in (200, 100))
    for watch in (whole, some):
        fit(Run(flat(), small_digits, probe=watch, settings=STILL))
    assert_close(whole.drops, [whole.drops[0]] * 4, atol=1e-6, rtol=0)
    assert max(some.drops) - min(some.drops) > 1e-3


def test_another_seed_draws_other_labels(small_digits):
    settings = [Settings(epochs=1, seed=seed) for seed in (0, 1)]
    drops = [first_drop(small_digits, Susceptibility(200, probe_lr=0.5), settings=s) for s in settings]
    assert drops[0] != pytest.approx(drops[1], rel=1e-3)


def test_held_out_inputs_are_named_and_must_be_there(small_digits, digits):
    held = digits.select(torch.arange(900, 960)).replace(labels=torch.zeros(60, dtype=torch.long))
    seen = inputs_seen(small_digits, Susceptibility(60, pool="held"), aux={"held": held})
    assert sorted(rows_of(seen[0], held)) == list(range(60))
    with pytest.raises(Incompatible, match=r"needs 'aux:held' \(it probes with these inputs\).* give some with --aux"):
        Run(flat(), small_digits, probe=Susceptibility(pool="held"))
    (use,) = resolve(["susceptibility:pool=held,batch=7"])
    parts = build_parts([use], small_digits)
    assert (parts.slots["probe"].pool, parts.slots["probe"].batch) == ("held", 7)


def test_a_pool_smaller_than_the_batch_is_used_whole_with_a_warning(small_digits):
    watch = Susceptibility(201)
    with pytest.warns(UserWarning, match="digits has 200 inputs, a probe of 201 takes them all"):
        fit(Run(flat(), small_digits, probe=watch, settings=STILL), max_steps=1)
    exact = Susceptibility(200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(Run(flat(), small_digits, probe=exact, settings=STILL), max_steps=1)
    assert exact.drops == watch.drops


def test_a_loss_with_a_scale_of_its_own_is_probed_at_that_scale(small_digits):
    watch = [Susceptibility(200, probe_lr=0.05) for _ in range(3)]
    scaled = first_drop(small_digits, watch[0], loss=Scaled())
    inside = first_drop(small_digits, watch[1], nn.Sequential(flat(), Multiplied()))
    assert scaled == pytest.approx(inside, rel=1e-5)
    assert scaled > 5 * first_drop(small_digits, watch[2])


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        Susceptibility(batch=0)
    with pytest.raises(ValueError, match="probe_lr must be >= 0 and finite, got -0.1"):
        Susceptibility(probe_lr=-0.1)
    with pytest.raises(SpecError, match="susceptibility is there twice; name it once"):
        resolve(["susceptibility", "susceptibility:batch=3"])
