"""Two processes with half the batch each must train like one process with all of it."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from weathered.core.distributed import mean_over_ranks
from weathered.core.facts import Traits
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.nn.build import build_model
from weathered.procedures.automix import AutoMix
from weathered.procedures.co_teaching import CoTeaching
from weathered.procedures.jocor import JoCoR
from weathered.procedures.ladc import LADC
from weathered.procedures.odnl import ODNL
from weathered.procedures.open_sampling import OpenSampling
from weathered.procedures.outlier_exposure import OutlierExposure
from weathered.procedures.pgd_training import PGDTraining
from weathered.procedures.selective_classification import SelectiveClassification
from weathered.procedures.self_adaptive_trades import SelfAdaptiveTrades
from weathered.procedures.self_adaptive_training import SelfAdaptiveTraining
from weathered.procedures.trades import Trades
from weathered.terms.area_under_margin import AreaUnderMargin
from weathered.terms.cals import CALS
from weathered.weighting.absgd import ABSGD
from weathered.weighting.drw import DRW

COUNTS = [40, 6, 2]
AUX = {"ood": Dataset.of(torch.arange(256).repeat(8)[: 30 * 64].view(30, 1, 8, 8).to(torch.uint8), torch.zeros(30))}

PARTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "supervised": dict,
    "jocor": lambda: {"procedure": JoCoR(0.5, 0.4, ramp=0.0)},
    "co-teaching": lambda: {"procedure": CoTeaching(0.4, ramp=0.0)},
    "automix": lambda: {"procedure": AutoMix(momentum=0.5, momentum_end=0.9, mask_weight=1.0, mask_tolerance=0.0)},
    "self-adaptive training": lambda: {"procedure": SelfAdaptiveTraining(0.0)},
    "self-adaptive trades": lambda: {
        "procedure": SelfAdaptiveTrades(epsilon=0.05, step_size=0.03, steps=2, start=0.5, momentum=0.5)
    },
    "odnl": lambda: {"procedure": ODNL(1.0, 16), "aux": AUX},
    "open-sampling": lambda: {"procedure": OpenSampling(torch.tensor(COUNTS), 1.0, aux_batch=16), "aux": AUX},
    "outlier exposure": lambda: {"procedure": OutlierExposure(1.0, 16), "aux": AUX},
    "pgd training": lambda: {"procedure": PGDTraining(0.05, steps=2, warm_up=0.5)},
    "trades": lambda: {"procedure": Trades(6.0, 0.05, steps=2)},
    "area under the margin": lambda: {"terms": [AreaUnderMargin()]},
    "cals": lambda: {"terms": [CALS(3, margin=0.2, rho_step=1)], "validation": images()},
    "ladc": lambda: {"procedure": LADC(0.5)},
    "selective": lambda: {"procedure": SelectiveClassification(0.0, momentum=0.5)},
    "absgd": lambda: {"reweight": ABSGD(0.3, gamma=0.5, rule="effective", class_counts=COUNTS)},
    "drw": lambda: {"reweight": DRW(COUNTS, start=0.3, rule="inverse")},
    "jocor and drw": lambda: {"procedure": JoCoR(0.5, 0.4, ramp=0.0), "reweight": DRW(COUNTS, start=0.0)},
}


def images() -> Dataset:
    rng = torch.Generator().manual_seed(3)
    labels = torch.arange(48) % 3
    pixels = torch.randint(0, 100, (48, 1, 8, 8), generator=rng) + 70 * labels[:, None, None, None]
    return Dataset.of(pixels.to(torch.uint8), labels)


def train(fabric: Fabric, parts: Mapping[str, Any]) -> torch.Tensor:
    """The weights of all modules before and after six steps, (2, number of weights)."""
    data = images()
    settings = Settings(epochs=2, batch_size=16, lr=0.05)
    model = build_model("cnn_small:width=8,norm=none", data)
    run = Run(model, data, settings=settings, fabric=fabric, **parts)
    before = weights(run)
    fit(run)
    return torch.stack([before, weights(run)])


def weights(run: Run) -> torch.Tensor:
    modules = (run.model, *run.modules.values())
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])


def train_all(path: Path, fabric: Fabric) -> None:
    """Write what `train` returns to a file: the launcher's own way back is a pipe that a few weights fill up."""
    torch.set_num_threads(1)
    results = {name: train(fabric, parts()) for name, parts in PARTS.items()}
    results["mean"] = mean_over_ranks(fabric, torch.tensor(1.0 + 2 * fabric.global_rank))
    if fabric.is_global_zero:
        save_file(results, path)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Mapping[str, torch.Tensor]:
    path = tmp_path_factory.mktemp("two_processes") / "weights.safetensors"
    Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(partial(train_all, path))
    return load_file(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_half_the_batch_on_each_of_two_processes_is_the_batch_on_one(name, two_processes):
    start, end = train(Fabric(accelerator="cpu", devices=1), PARTS[name]())
    start_of_two, end_of_two = two_processes[name]
    assert torch.equal(start_of_two, start)
    assert (end - start).abs().max() > 1e-2
    assert_close(end_of_two, end, atol=1e-5, rtol=0)


def local_weights(path: Path, fabric: Fabric) -> None:
    """As `train_all`, with parts that do not ask for the batch of all processes."""
    torch.set_num_threads(1)
    results = {}
    for name in ("absgd", "drw"):
        parts = PARTS[name]()
        parts["reweight"].traits = Traits()
        results[name] = train(fabric, parts)
    if fabric.is_global_zero:
        save_file(results, path)


@pytest.mark.slow
def test_weights_of_each_half_alone_would_be_others(tmp_path):
    """What the tests above would miss if both halves of a batch were alike."""
    Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(partial(local_weights, tmp_path / "weights"))
    for name, (_, found) in load_file(tmp_path / "weights").items():
        assert (found - train(Fabric(accelerator="cpu", devices=1), PARTS[name]())[1]).abs().max() > 1e-4


@pytest.mark.slow
def test_mean_over_ranks(two_processes):
    assert float(two_processes["mean"]) == 2.0


def tables(path: Path, fabric: Fabric) -> None:
    """Write the targets of both processes to a file."""
    torch.set_num_threads(1)
    procedure = SelfAdaptiveTraining(0.0, momentum=0.5)
    train(fabric, {"procedure": procedure})
    everyone = fabric.all_gather(procedure.targets)
    if fabric.is_global_zero:
        save_file({"tables": everyone}, path)


@pytest.mark.slow
def test_targets_are_the_same_on_all_processes_and_those_of_one(tmp_path):
    Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(partial(tables, tmp_path / "tables"))
    found = load_file(tmp_path / "tables")["tables"]
    alone = SelfAdaptiveTraining(0.0, momentum=0.5)
    train(Fabric(accelerator="cpu", devices=1), {"procedure": alone})
    assert found.shape == (2, 48, 3)
    assert torch.equal(found[0], found[1])
    assert_close(found[0], alone.targets, atol=1e-5, rtol=0)
    assert ((alone.targets > 0) & (alone.targets < 1)).all()
