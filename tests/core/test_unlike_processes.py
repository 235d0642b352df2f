"""What each of two processes has for itself: running statistics, a sum of losses, the coin of a transform."""

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from weathered.core.distributed import by_rank, gather_target
from weathered.core.errors import CheckpointError
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.mixing.cutmix import CutMix
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model
from weathered.procedures.smoothmix import SmoothMix
from weathered.weighting.absgd import ABSGD
from weathered.weighting.drw import DRW

pytestmark = pytest.mark.slow

COUNTS = [16, 16, 16]
MIXED = {
    "drw": lambda: {"transforms": [CutMix(probability=0.5)], "reweight": DRW(COUNTS, start=0.0)},
    "absgd": lambda: {"transforms": [MixUp(probability=0.5)], "reweight": ABSGD(0.3)},
}


def make(fabric: Fabric, norm: str = "batch", **parts) -> Run:
    rng = torch.Generator().manual_seed(3)
    labels = torch.arange(48) % 3
    pixels = torch.randint(0, 100, (48, 1, 8, 8), generator=rng) + 70 * labels[:, None, None, None]
    data = Dataset.of(pixels.to(torch.uint8), labels)
    settings = Settings(epochs=2, batch_size=16, lr=0.05)
    return Run(build_model(f"cnn_small:width=8,norm={norm}", data), data, settings=settings, fabric=fabric, **parts)


def everything(run: Run) -> torch.Tensor:
    """All weights and buffers of this process."""
    return torch.cat([value.flatten().double() for value in run.model.state_dict().values()])


def interrupted(fabric: Fabric, folder: Path) -> dict[str, torch.Tensor]:
    """Six steps at once, and cut after two; (2, numbers) of both processes each, and the losses of both epochs."""
    found = {}

    def procedure() -> SmoothMix:
        # its attack reads the running statistics
        return SmoothMix(attack_steps=2, warmup=0.0)

    for name in ("whole", "resumed"):
        losses: list[float] = []
        if name == "resumed":
            fit(make(fabric, procedure=procedure()), folder=folder, max_steps=2)
        run = make(fabric, procedure=procedure())
        fit(run, folder=folder if name == "resumed" else None, after_epoch=lambda _, loss, to=losses: to.append(loss))
        found[name] = by_rank(fabric, everything(run))
        found[f"{name} losses"] = torch.tensor(losses, dtype=torch.float64)
    return found


def targets(rank: int) -> Target:
    """A hard label on the first process, mixtures of two on the second."""
    hard = Target.hard(torch.tensor([0, 2]) if rank == 0 else torch.tensor([1, 0]))
    return hard if rank == 0 else hard.mix(torch.tensor([1, 0]), torch.tensor(0.25))


def soft_targets(rank: int) -> Target:
    return targets(rank) if rank == 0 else Target.soft(torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]]))


def on_both(path: Path, fabric: Fabric) -> None:
    torch.set_num_threads(1)
    results = interrupted(fabric, path / "checkpoint")
    results["gathered"] = gather_target(fabric, targets(fabric.global_rank)).dense(3)
    soft = gather_target(fabric, soft_targets(fabric.global_rank))
    results |= {"gathered soft": soft.dense(3), "width": torch.tensor(soft.num_classes or 0)}
    for name, parts in MIXED.items():
        run = make(fabric, norm="none", **parts())
        depths: list[int] = []
        objective = run.objective
        run.objective = lambda output, batch, ask=objective, to=depths: (
            to.append(len(batch.target.labels)) or ask(output, batch)
        )
        results[name] = by_rank(fabric, everything(fit(run)))
        results[f"{name} depths"] = by_rank(fabric, torch.tensor(depths))
    fit(make(fabric), folder=path / "of two", max_steps=2)
    if fabric.is_global_zero:
        save_file({name: tensor.contiguous() for name, tensor in results.items()}, path / "results.safetensors")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("unlike")
    Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(partial(on_both, path))
    return path


@pytest.fixture(scope="module")
def found(path) -> dict[str, torch.Tensor]:
    return load_file(path / "results.safetensors")


def test_each_process_goes_on_with_its_own_running_statistics(found):
    first, second = found["whole"]
    assert not torch.equal(first, second)
    assert torch.equal(found["resumed"], found["whole"])


def test_the_loss_of_an_epoch_that_was_cut_is_that_of_the_whole(found):
    assert len(found["whole losses"]) == 2
    assert torch.equal(found["resumed losses"], found["whole losses"])


@pytest.mark.parametrize(("name", "of"), [("gathered", targets), ("gathered soft", soft_targets)])
def test_targets_of_unequal_depth_are_gathered_as_they_are_joined(found, name, of):
    assert_close(found[name], Target.cat([of(0), of(1)]).dense(3), atol=0, rtol=0)
    assert int(found["width"]) == 3


@pytest.mark.parametrize("name", MIXED)
def test_processes_that_mix_by_a_coin_of_their_own_train_together(found, name):
    first, second = found[f"{name} depths"]
    assert len(first) == 6
    assert (first != second).any()
    assert torch.equal(*found[name])


def test_a_checkpoint_of_two_processes_is_refused_by_one(path):
    with pytest.raises(CheckpointError, match=r"was written on 2 device\(s\), this run has 1, .* Use 2, or delete"):
        fit(make(Fabric(accelerator="cpu", devices=1)), folder=path / "of two")
