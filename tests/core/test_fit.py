"""The loop: learns, is deterministic, resumes bit for bit, and never trains on NaN."""

import math
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from weathered.core.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from weathered.core.errors import CheckpointError, DataError, NonFinite
from weathered.core.fit import fit
from weathered.core.roles import Part
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.losses.logitclip import LogitClip
from weathered.nn.build import build_model


def make(dataset, model="cnn_small", **changes):
    settings = Settings(**{"epochs": 2, "batch_size": 32, "checkpoint_seconds": 0, **changes})
    return Run(lambda seed: build_model(model, dataset, seed=seed), dataset, loss=LogitClip(), settings=settings)


def weights(run):
    return torch.cat([value.flatten().double() for value in run.model.state_dict().values()])


def test_it_learns_digits(digits):
    train, test = digits.select(torch.arange(1200)), digits.select(torch.arange(1200, 1797))
    run = fit(make(train, epochs=5))
    assert float((run.predict(test).argmax(1) == test.labels).double().mean()) > 0.93
    assert run.progress == 1


def test_a_table_trains_too(wine):
    run = fit(make(wine, "mlp", epochs=20, batch_size=16, lr=0.02))
    assert float((run.predict(wine).argmax(1) == wine.labels).double().mean()) > 0.95


def test_same_seed_same_weights_and_another_seed_others(small_digits):
    first, second, other = (fit(make(small_digits, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


def test_the_callers_random_state_is_untouched(small_digits):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(make(small_digits, epochs=1))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("cut", [1, 2, 5, 6, 7])
def test_resumed_equals_uninterrupted(small_digits, tmp_path, cut):
    whole = fit(make(small_digits))
    fit(make(small_digits), folder=tmp_path, recipe_hash="r", max_steps=cut)
    resumed = make(small_digits, seed=0)
    fit(resumed, folder=tmp_path, recipe_hash="r")
    assert resumed.step == whole.step == 12
    assert torch.equal(weights(resumed), weights(whole))


def test_dropout_resumes_too(small_digits, tmp_path):
    def run():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
        return Run(model, small_digits, settings=Settings(epochs=2, batch_size=32))

    whole = fit(run())
    fit(run(), folder=tmp_path, recipe_hash="r", max_steps=5)
    assert torch.equal(weights(fit(run(), folder=tmp_path, recipe_hash="r")), weights(whole))


def test_a_nan_loss_names_step_and_parts_and_leaves_the_checkpoint(small_digits, tmp_path):
    class Poison(Part):
        def __call__(self, logits, labels):
            self.calls = getattr(self, "calls", 0) + 1
            return logits.sum(1) * (math.nan if self.calls == 4 else 1e-3)

    run = Run(
        build_model("mlp", small_digits),
        small_digits,
        loss=Poison(),
        settings=Settings(batch_size=32, checkpoint_seconds=0),
    )
    with pytest.raises(NonFinite, match=r"loss is nan at step 3 .*Procedure, Poison, transforms: none"):
        fit(run, folder=tmp_path, recipe_hash="r")
    assert torch.isfinite(weights(run)).all()
    assert load_checkpoint(newest_checkpoint(tmp_path), "r")["step"] == 3


def test_a_damaged_checkpoint_is_one_sentence(small_digits, tmp_path):
    fit(make(small_digits), folder=tmp_path, recipe_hash="r", max_steps=2)
    path = newest_checkpoint(tmp_path)
    data = (path / "tensors.safetensors").read_bytes()
    (path / "tensors.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"tensors.safetensors was cut or changed. Delete"):
        fit(make(small_digits), folder=tmp_path, recipe_hash="r")
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state.json cannot be read"):
        fit(make(small_digits), folder=tmp_path, recipe_hash="r")


def test_a_checkpoint_of_another_recipe_is_refused(small_digits, tmp_path):
    fit(make(small_digits), folder=tmp_path, recipe_hash="r", max_steps=2)
    with pytest.raises(CheckpointError, match=r"belongs to another recipe \(r, this one is other\)"):
        fit(make(small_digits), folder=tmp_path, recipe_hash="other")


def test_checkpoints_round_trip_any_tree(tmp_path):
    state = {"step": 3, "x": {1: torch.arange(3), "n": None, "l": [1.5, True, "a"]}, "empty": torch.zeros(0)}
    save_checkpoint(tmp_path, state, "h")
    again = load_checkpoint(newest_checkpoint(tmp_path), "h")
    assert torch.equal(again["x"][1], state["x"][1])
    assert again["x"]["l"] == [1.5, True, "a"]
    assert again["x"]["n"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000003"]


def test_interrupting_saves_a_whole_state(small_digits, tmp_path):
    whole = fit(make(small_digits))

    def press(run):
        if run.step == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(make(small_digits, checkpoint_seconds=1000), folder=tmp_path, recipe_hash="r", observer=press)
    resumed = make(small_digits)
    fit(resumed, folder=tmp_path, recipe_hash="r")
    assert torch.equal(weights(resumed), weights(whole))


def test_too_little_data_is_refused(small_digits):
    with pytest.raises(DataError, match="2 samples of 2 classes"):
        make(small_digits.select(torch.arange(1)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs must be at least 1"),
        ("lr", -1.0, "lr must be > 0"),
        ("lr", math.nan, "lr must be > 0"),
        ("momentum", 1.0, r"momentum must be in \[0, 1\)"),
        ("optimizer", "sdg", "optimizer must be one of"),
        ("weight_decay", -1e-4, "weight_decay must be >= 0"),
    ],
)
def test_settings_out_of_range(field, value, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{field: value})


def test_schedules_start_at_lr_and_end_low():
    for schedule, last in (("cosine", 1e-4), ("step", 1e-2), ("constant", 1.0)):
        settings = Settings(lr=1.0, schedule=schedule)
        assert settings.learning_rate(0.0) == 1.0
        assert settings.learning_rate(0.999) == pytest.approx(last, abs=1e-3)


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_warm_up_rises_by_equal_steps_to_the_full_rate(small_digits, schedule):
    """5 steps of warm-up in 20: a fifth of the rate in the first step, all of it in the fifth, then the schedule."""
    rates: list[float] = []
    run = make(small_digits, "mlp", epochs=2, batch_size=20, lr=0.5, warmup=0.25, schedule=schedule)
    fit(run, observer=lambda run: rates.append(run.optimizer.param_groups[0]["lr"]))
    assert len(rates) == 20
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert rates[5] == 0.5
    assert rates[6:] == [run.settings.learning_rate(step / 20) for step in range(6, 20)]
    # an end of warm-up inside a step, or inside the first one
    assert Settings(lr=1.0, warmup=0.26).learning_rate(0.25, 0.05) == 1.0
    assert Settings(lr=1.0, warmup=0.01).learning_rate(0.0, 0.05) == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_without_warm_up_the_length_of_a_step_does_not_matter(schedule):
    settings = Settings(schedule=schedule)
    for step in range(300):
        assert settings.learning_rate(step / 300, 1 / 300) == settings.learning_rate(step / 300)


def test_help_and_list_do_not_import_torch():
    code = "import sys; sys.argv = ['weathered', '{}']; import weathered.__main__ as m\n"
    for command in ("--help", "list"):
        script = code.format(command) + "try:\n    m.main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
        assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def test_the_state_of_a_plain_torch_module_is_saved_too(small_digits, tmp_path):
    class Counting(nn.Module):
        """A loss that grows with the number of its calls, kept in a buffer."""

        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, logits, labels):
            self.calls += 1
            return nn.functional.cross_entropy(logits, labels, reduction="none") * (1 + self.calls)

    def run():
        return Run(build_model("mlp:width=8", small_digits), small_digits, loss=Counting(), settings=Settings(1, 32))

    whole = fit(run(), max_steps=4)
    fit(run(), folder=tmp_path, recipe_hash="r", max_steps=2)
    resumed = fit(run(), folder=tmp_path, recipe_hash="r", max_steps=2)
    assert float(resumed.loss_part.calls) == 4
    assert torch.equal(weights(resumed), weights(whole))
