"""Draws of layers where a procedure takes several steps on one batch."""

import torch
from torch import nn

from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.rng import derive_seed
from weathered.core.roles import Part
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.procedures.smoothmix import SmoothMix


class Watched(nn.Module):
    """A linear network behind dropout that keeps its masks."""

    def __init__(self):
        super().__init__()
        self.dropout, self.linear, self.masks = nn.Dropout(0.5), nn.Linear(64, 10), []

    def forward(self, x):
        self.masks.append(self.dropout(torch.ones(len(x), 64)))
        return self.linear(x.flatten(1) * self.masks[-1])


class Twice(Procedure):
    """Two steps on the same loss of the same batch."""

    def update(self, run, batch):
        for _ in range(2):
            super().update(run, batch)


class AskAgain(Part):
    """The plain step, after asking for the loss once more than it needs."""

    def step(self, run, closure):
        closure()
        run.optimizer.zero_grad(set_to_none=True)
        loss = closure()
        run.backward(loss)
        run.optimizer.step()
        return loss.detach()


def masks(small_digits, **parts) -> list[torch.Tensor]:
    """Of all passes of two training steps."""
    model = Watched()
    fit(Run(model, small_digits, settings=Settings(epochs=1, batch_size=20), **parts), max_steps=2)
    return model.masks


def named(*key: int) -> torch.Tensor:
    """The mask that the generator of layers gives first after this key."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(0, "layers", *key))
        return nn.functional.dropout(torch.ones(20, 64))


def test_one_step_draws_by_process_and_step_alone(small_digits):
    first, second = masks(small_digits)
    assert torch.equal(first, named(0, 0))
    assert torch.equal(second, named(0, 1))
    assert not torch.equal(first, second)


def test_each_further_step_has_a_mask_of_its_own_and_the_next_batch_begins_anew(small_digits):
    found = masks(small_digits, procedure=Twice())
    expected = [named(0, 0), named(0, 0, 1), named(0, 1), named(0, 1, 1)]
    assert all(map(torch.equal, found, expected))
    assert len({mask.numpy().tobytes() for mask in found}) == len(found) == 4


def test_a_stepper_that_asks_again_meets_the_same_mask_in_each_of_the_steps(small_digits):
    found = masks(small_digits, procedure=Twice(), stepper=AskAgain())
    assert len(found) == 8
    assert all(torch.equal(*pair) for pair in zip(found[::2], found[1::2], strict=True))
    assert torch.equal(found[2], named(0, 0, 1))


def test_chunks_of_smoothmix_drop_different_units(small_digits):
    first, second, *_ = masks(small_digits, procedure=SmoothMix(num_noise=2, eta=0.0, chunked=True))
    assert first.shape == second.shape == (20, 64)
    assert not torch.equal(first, second)
