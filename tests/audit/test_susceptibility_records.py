"""What the probe leaves behind: state that resumes bit for bit, lines of metrics, and regions of finished runs."""

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from weathered.audit.susceptibility import Susceptibility, regions, running_mean
from weathered.audit.susceptibility_runs import regions_of_runs
from weathered.augment.crop_flip import CropFlip
from weathered.core.errors import DataError, Unused
from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.roles import Part, Transform
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.losses.cross_entropy import CrossEntropy
from weathered.nn.build import build_model
from weathered.recipe import DataOptions, Recipe
from weathered.store import RunFolder
from weathered.training import train


class Diary(Part):
    """Notes when an epoch begins, and at what learning rate."""

    def __init__(self):
        self.notes: list[tuple[int, float]] = []

    def before_epoch(self, run):
        self.notes.append((run.step, run.optimizer.param_groups[0]["lr"]))


class DiaryLoss(Diary, CrossEntropy):
    def __init__(self):
        Diary.__init__(self)
        CrossEntropy.__init__(self)


class DiaryProcedure(Diary, Procedure):
    pass


SETTINGS = Settings(epochs=3, batch_size=50, lr=0.1, warmup=0.1, checkpoint_seconds=0)


@pytest.mark.parametrize("cuts", [(12,), (4, 4, 4), (1, 2, 3, 5, 1)])
def test_every_part_is_told_once_that_an_epoch_begins_at_the_rate_of_its_first_step(small_digits, cuts):
    parts = {"probe": Diary(), "loss": DiaryLoss(), "procedure": DiaryProcedure()}
    run = Run(build_model("mlp:width=8", small_digits), small_digits, settings=SETTINGS, **parts)
    for steps in cuts:
        fit(run, max_steps=steps)
    expected = [(step, SETTINGS.learning_rate(step / 12, 1 / 12)) for step in (0, 4, 8)]
    assert [part.notes for part in parts.values()] == [expected] * 3
    assert run.used[id(run.probe)] == 3


def test_being_told_of_an_epoch_does_not_count_as_being_called(small_digits):
    class Deaf(Procedure):
        def loss(self, run, batch):
            return run.model(batch.x).square().mean()

    parts = {"probe": Diary(), "loss": DiaryLoss(), "procedure": Deaf()}
    run = Run(build_model("mlp:width=8", small_digits), small_digits, settings=SETTINGS, **parts)
    with pytest.raises(Unused, match="DiaryLoss was given as 'loss' but Deaf did not call it"):
        fit(run)


@pytest.mark.parametrize("cut", [1, 4, 5, 8])
def test_a_resumed_run_has_the_same_drops(small_digits, tmp_path, cut):
    def run() -> Run:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 10))
        return Run(model, small_digits, probe=Susceptibility(64), settings=SETTINGS)

    whole, begun, resumed = run(), run(), run()
    fit(whole)
    fit(begun, folder=tmp_path, recipe_hash="r", max_steps=cut)
    torch.rand(5)
    fit(resumed, folder=tmp_path, recipe_hash="r")
    assert whole.probe.drops == resumed.probe.drops
    assert len(whole.probe.drops) == 3
    assert whole.probe.metrics() == resumed.probe.metrics()
    for expected, found in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert expected.equal(found)


def test_an_epoch_begun_again_after_an_error_is_counted_once(small_digits):
    watch = Susceptibility(64)
    run = Run(build_model("mlp:width=8", small_digits), small_digits, probe=watch, settings=SETTINGS)
    watch.before_epoch(run)
    fit(run)
    assert len(watch.drops) == 3


def recipe(*use: str, model: str = "mlp:width=16", seed: int = 0, noise: float = 0.4, **changes) -> Recipe:
    settings = Settings(**{"epochs": 3, "batch_size": 50, "evaluations": 1, "checkpoint_seconds": 0, **changes})
    data = DataOptions("digits", limit=200, make=(f"symmetric:rate={noise}",), aux=("held=gaussian:size=90",))
    return Recipe(data, model, use=use, settings=settings.__class__(**{**vars(settings), "seed": seed}))


def stop_at(step: int, run: Run) -> None:
    if run.step == step:
        raise KeyboardInterrupt


@pytest.mark.parametrize("official", ["false", "true"])
def test_a_recipe_writes_mean_and_drop_of_each_epoch_and_changes_no_weight(tmp_path, official):
    plain = train(recipe(), tmp_path)
    watched = recipe(f"susceptibility:batch=64,official_mean={official}")
    folder = train(watched, tmp_path / "whole")
    for key, value in load_file(plain.weights).items():
        assert load_file(folder.weights)[key].equal(value)
    lines = folder.metrics()
    drops = [line["susceptibility_drop"] for line in lines]
    assert len(drops) == 3
    assert all(drops)
    assert [line["susceptibility"] for line in lines] == running_mean(drops, official == "true")
    assert [line["train_loss"] for line in lines] == [line["train_loss"] for line in plain.metrics()]
    assert "susceptibility" not in plain.metrics()[0]
    with pytest.raises(KeyboardInterrupt):
        train(watched, tmp_path / "cut", observer=partial(stop_at, 6))
    resumed = train(watched, tmp_path / "cut").metrics()
    assert [{**line, "seconds": 0} for line in resumed] == [{**line, "seconds": 0} for line in lines]


def test_a_probe_that_is_not_finite_is_null_in_the_metrics_and_training_goes_on(tmp_path):
    with pytest.warns(UserWarning, match="recorded as NaN and left out of the mean"):
        folder = train(recipe("susceptibility:batch=64,probe_lr=1e30"), tmp_path)
    lines = folder.metrics()
    assert [(line["susceptibility"], line["susceptibility_drop"]) for line in lines] == [(None, None)] * 3
    with pytest.raises(DataError, match="has no finite susceptibility in metrics.jsonl; leave it out"):
        regions_of_runs([tmp_path])


WATCH = "susceptibility:batch=64"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> list[RunFolder]:
    """One that learned little, one that learned its labels by heart, one between."""
    out = tmp_path_factory.mktemp("runs")
    return [
        train(recipe(WATCH, model=f"mlp:width={width}", weight_decay=decay, epochs=12), out)
        for width, decay in ((8, 0.5), (256, 0.0), (256, 0.02))
    ]


def test_regions_are_read_off_finished_runs(finished):
    found = regions_of_runs([folder.path for folder in finished])
    assert [run.path for run in found] == [folder.path for folder in finished]
    for run, folder in zip(found, finished, strict=True):
        record = folder.metrics()[-1]
        assert run.susceptibility == record["susceptibility"]
    accuracy, zeta = [run.train_accuracy for run in found], [run.susceptibility for run in found]
    assert accuracy[0] < accuracy[2] <= accuracy[1]
    assert [run.region for run in found] == regions(accuracy, zeta)
    assert {run.path for run in regions_of_runs([finished[0].path.parent])} == {run.path for run in found}
    assert [run.region for run in regions_of_runs([finished[0].path])] == ["undecided"]


def test_runs_that_cannot_be_compared_are_refused(finished, tmp_path):
    bare, other, clean = (
        train(one, tmp_path) for one in (recipe(), recipe(WATCH + ",pool=held"), recipe(WATCH, noise=0.2))
    )
    for message, folder in (
        ("was trained without the probe", bare),
        ("has another probe than", other),
        ("has another data than", clean),
    ):
        with pytest.raises(DataError, match=message):
            regions_of_runs([finished[0].path, folder.path])
    (clean.path / "done").unlink()
    with pytest.raises(DataError, match="is not finished; go on with it"):
        regions_of_runs([clean.path])


@pytest.mark.parametrize(
    ("use", "changes", "message"),
    [
        ((WATCH, "label-smoothing"), {}, "another loss than"),
        ((WATCH,), {"lr": 0.01}, "another optimizer, rate or schedule than"),
        ((WATCH,), {"schedule": "constant"}, "another optimizer, rate or schedule than"),
    ],
)
def test_runs_on_different_scales_are_warned_of(finished, tmp_path, use, changes, message):
    folder = train(recipe(*use, **changes), tmp_path)
    with pytest.warns(UserWarning, match=f"{folder.path.name} trained with {message}"):
        regions_of_runs([finished[0].path, folder.path])


def images() -> Dataset:
    rng = torch.Generator().manual_seed(3)
    return Dataset.of(torch.randint(0, 255, (48, 1, 8, 8), generator=rng).to(torch.uint8), torch.arange(48) % 3)


def drops_of(fabric: Fabric, *transforms: Transform) -> torch.Tensor:
    torch.set_num_threads(1)
    data, watch = images(), Susceptibility(32)
    model, settings = build_model("mlp:width=32", data), Settings(epochs=3, batch_size=16)
    fit(Run(model, data, probe=watch, transforms=transforms, settings=settings, fabric=fabric))
    return torch.tensor(watch.drops)


def write_drops(path: Path, fabric: Fabric) -> None:
    everyone = {
        "plain": fabric.all_gather(drops_of(fabric)),
        "augmented": fabric.all_gather(drops_of(fabric, CropFlip())),
    }
    if fabric.is_global_zero:
        save_file(everyone, path)


@pytest.mark.slow
def test_two_processes_probe_the_same_batch(tmp_path):
    Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(partial(write_drops, tmp_path / "drops"))
    found, alone = load_file(tmp_path / "drops"), Fabric(accelerator="cpu", devices=1)
    for drops in found.values():
        assert drops.shape == (2, 3)
        assert torch.equal(drops[0], drops[1])
        assert (drops.abs() > 1e-4).all()
    assert_close(found["plain"][0], drops_of(alone), atol=1e-5, rtol=0)
    # augmentation of the training batches is each process's own, so later epochs differ
    assert_close(found["augmented"][0, 0], drops_of(alone, CropFlip())[0], atol=1e-5, rtol=0)
