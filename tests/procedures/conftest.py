"""A small image data set, and the property that every procedure must have."""

from collections.abc import Callable

import pytest
import torch

from weathered.core.checkpoint import load_checkpoint, newest_checkpoint
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.data.dataset import Dataset


@pytest.fixture
def images() -> Dataset:
    """48 images of 8x8 pixels in three classes that differ in brightness, with noise."""
    rng = torch.Generator().manual_seed(3)
    labels = torch.arange(48) % 3
    pixels = torch.randint(0, 100, (48, 1, 8, 8), generator=rng) + 70 * labels[:, None, None, None]
    return Dataset.of(pixels.to(torch.uint8), labels)


@pytest.fixture
def assert_resumes(tmp_path) -> Callable[[Callable[[], Run]], None]:
    """4 steps must equal 2 steps, a checkpoint, a new run that reads it, and 2 more steps, bit for bit."""

    def check(make: Callable[[], Run]) -> None:
        whole = fit(make(), max_steps=4)
        assert whole.step == 4
        first = fit(make(), max_steps=2, folder=tmp_path / "checkpoint")
        path = newest_checkpoint(tmp_path / "checkpoint")
        assert path is not None
        assert first.step == 2
        second = make()
        second.load_state_dict(load_checkpoint(path, ""))
        fit(second, max_steps=2)
        for one, other in zip(tensors(whole), tensors(second), strict=True):
            assert torch.equal(one, other)
        assert not all(torch.equal(one, other) for one, other in zip(tensors(whole), tensors(first), strict=True))

    return check


def tensors(run: Run) -> list[torch.Tensor]:
    """All weights and buffers of a run."""
    modules = [run.model, *run.modules.values()]
    return [tensor for module in modules for tensor in module.state_dict().values()]
