"""When one of several processes must stop, all of them do, instead of waiting for it."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from weathered.core.checkpoint import newest_checkpoint
from weathered.core.distributed import any_process, together
from weathered.core.fit import fit
from weathered.core.roles import Part
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.nn.build import build_model


class Poison(Part):
    """Losses that are NaN on one process only, from the third step on."""

    def __init__(self, rank: int):
        self.rank, self.calls = rank, 0

    def __call__(self, logits, labels):
        self.calls += 1
        spoiled = self.calls > 2 and torch.distributed.get_rank() == self.rank
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none") * (torch.nan if spoiled else 1)


def make(fabric: Fabric, loss=None) -> Run:
    rng = torch.Generator().manual_seed(0)
    data = Dataset.of(torch.rand(64, 5, generator=rng), torch.arange(64) % 2)
    return Run(build_model("mlp:width=8", data), data, loss=loss, settings=Settings(4, 16), fabric=fabric)


def one_fails(fabric: Fabric, rank: int) -> None:
    with together(fabric):
        if fabric.global_rank == rank:
            raise OSError("the disk is full")


def watcher_fails(fabric: Fabric) -> None:
    def watch(run: Run) -> None:
        if run.step == 3 and fabric.is_global_zero:
            raise OSError("the disk is full")

    fit(make(fabric), observer=watch)


def interrupt_first(fabric: Fabric, folder: Path) -> None:
    def watch(run: Run) -> None:
        if run.step == 3 and fabric.is_global_zero:
            os.kill(os.getpid(), signal.SIGINT)

    fit(make(fabric), folder=folder, recipe_hash="r", observer=watch)


def outcomes(path: Path, fabric: Fabric) -> None:
    """Write how each case ended on this process."""
    cases = {
        "first fails": partial(one_fails, fabric, 0),
        "second fails": partial(one_fails, fabric, 1),
        "watcher fails": partial(watcher_fails, fabric),
        "nan on the second": lambda: fit(make(fabric, Poison(1))),
        "interrupt": partial(interrupt_first, fabric, path / "checkpoint"),
    }
    found = {}
    for name, case in cases.items():
        try:
            case()
            found[name] = "went on"
        except (Exception, KeyboardInterrupt) as error:
            found[name] = f"{type(error).__name__}: {error}"
        fabric.barrier()
    (path / f"{fabric.global_rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[Path, list[dict[str, str]]]:
    path = tmp_path_factory.mktemp("stopping")
    Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(partial(outcomes, path))
    return path, [json.loads((path / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(("case", "rank"), [("first fails", 0), ("second fails", 1), ("watcher fails", 0)])
def test_a_failure_of_one_process_is_a_failure_of_both(ended, case, rank):
    found = [results[case] for results in ended[1]]
    assert found[rank] == "OSError: the disk is full"
    assert found[1 - rank].startswith("WeatheredError: another process has failed")


def test_nan_on_one_process_is_named_there_and_stops_the_other_too(ended):
    first, second = (results["nan on the second"] for results in ended[1])
    assert second.startswith("NonFinite: the loss is nan at step 2")
    assert first.startswith("NonFinite: the loss is not finite on another process at step 2")


def test_an_interrupt_of_the_first_process_stops_both_after_a_checkpoint(ended):
    path, results = ended
    assert [found["interrupt"].partition(":")[0] for found in results] == ["KeyboardInterrupt"] * 2
    newest = newest_checkpoint(path / "checkpoint")
    assert newest is not None
    # the signal is seen at the end of the step after the one in which it came
    assert newest.name in ("step-000000003", "step-000000004")


def test_one_process_needs_nobody():
    assert any_process(None, True)
    assert not any_process(None, False)
    with pytest.raises(OSError, match="full"), together(None):
        raise OSError("full")
