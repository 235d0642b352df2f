"""Distillation: gradients in closed form, a teacher that stands still and sees the same batch, refusals."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.errors import DataError, Incompatible
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.overlap import trained_on
from weathered.data.prepare import prepare
from weathered.data.sources import load
from weathered.loaded_run import load_run
from weathered.losses.ldam import LDAM
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model
from weathered.procedures.distillation import Distillation, soft_cross_entropy
from weathered.recipe import DataOptions, Recipe
from weathered.training import train

DIGITS = DataOptions("digits", limit=200)
SETTINGS = Settings(epochs=2, batch_size=50)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """The folder of a run on digits whose network has batch normalisation."""
    recipe = Recipe(DIGITS, "cnn_small:width=8", settings=Settings(epochs=4, batch_size=20))
    return str(train(recipe, tmp_path_factory.mktemp("runs")).path)


def student(data, procedure=None, epochs: int = 2, transforms=()) -> Run:
    def model(seed: int) -> torch.nn.Module:
        return build_model("mlp:width=16", data, seed=seed)

    settings = replace(SETTINGS, epochs=epochs)
    return Run(model, data, procedure=procedure, settings=settings, transforms=transforms)


def normal(classes: int, seed: int) -> torch.Tensor:
    return torch.randn(200, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(logits: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    z = logits.clone().requires_grad_()
    return torch.autograd.grad(soft_cross_entropy(z, teacher, temperature).sum(), z)[0]


def test_equal_logits_leave_no_gradient():
    z = normal(7, 0)
    for temperature in (1.0, 20.0):
        assert_close(gradient(z, z, temperature), torch.zeros_like(z), atol=1e-12, rtol=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_the_gradient_is_temperature_times_the_difference_of_softmaxes(temperature):
    z, r = normal(7, 0), normal(7, 1)
    expected = temperature * ((z / temperature).softmax(1) - (r / temperature).softmax(1))
    assert_close(gradient(z, r, temperature), expected)


def test_hot_teachers_match_centred_logits():
    z, r = normal(7, 0), normal(7, 1)
    limit = ((z - z.mean(1, keepdim=True)) - (r - r.mean(1, keepdim=True))) / 7
    errors = [float((gradient(z, r, hot) - limit).norm() / limit.norm()) for hot in (20.0, 1000.0)]
    assert errors[0] < 0.065
    assert errors[1] < 0.0013
    assert errors[0] / errors[1] == pytest.approx(50, rel=0.05)


def test_it_is_the_divergence_plus_the_entropy_of_the_teacher():
    z, r = normal(7, 0), normal(7, 1)
    p = (r / 4).softmax(1)
    divergence = F.kl_div((z / 4).log_softmax(1), p, reduction="none").sum(1)
    entropy = -(p * p.log()).sum(1)
    assert_close(soft_cross_entropy(z, r, 4.0), 16 * (divergence + entropy))


def test_no_gradient_reaches_the_teacher():
    r = normal(7, 1).requires_grad_()
    loss = soft_cross_entropy(normal(7, 0).requires_grad_(), r, 4.0).sum()
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(loss, r)


def test_the_loss_is_the_weighted_sum_on_the_mixed_batch(teacher):
    data = load("digits").select(torch.arange(100))
    run = student(data, Distillation(teacher, hard_weight=0.3, temperature=4.0), transforms=[MixUp()])
    batch = run.prepare(data.inputs.fetch(torch.arange(50)), data.labels[:50], torch.arange(50))
    assert not batch.target.is_hard
    logits = run.model(batch.x)
    with torch.no_grad():
        said = load_run(teacher).model.eval()(batch.x)
    hard = F.cross_entropy(logits, batch.target.dense(10))
    soft = 16 * F.cross_entropy(logits / 4, (said / 4).softmax(1))
    assert_close(run.procedure.loss(run, batch), 0.3 * hard + 0.7 * soft)


def test_weight_one_is_plain_training_bit_for_bit(teacher, small_digits):
    plain, distilled, taught = (
        fit(student(small_digits, procedure))
        for procedure in (None, Distillation(teacher, hard_weight=1.0), Distillation(teacher))
    )
    weights = [torch.cat([p.detach().flatten() for p in run.parameters]) for run in (plain, distilled, taught)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_teacher_stands_still_and_is_not_trained_or_saved(teacher, small_digits):
    run = student(small_digits, Distillation(teacher))
    network = run.procedure.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fit(run)
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    own = {id(p) for p in network.parameters()}
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert not own & {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert not run.state_dict()["modules"]
    # the same rows give the same answer whatever the rest of the batch is
    x = small_digits.floats(torch.arange(8))
    assert_close(run.procedure.teach(run, x)[:2], run.procedure.teach(run, x[:2]))


def test_with_the_teacher_alone_the_student_learns_what_it_says(teacher, small_digits):
    # labels that say nothing, so that what is learned comes from the teacher
    mute = small_digits.replace(labels=torch.arange(200) % 10)
    run = student(mute, Distillation(teacher, hard_weight=0.0, temperature=2.0), epochs=20)
    says = run.procedure.teach(run, mute.floats(torch.arange(200))).argmax(1)

    def agreement() -> float:
        return float((run.predict(mute).argmax(1) == says).double().mean())

    before = agreement()
    fit(run)
    assert agreement() > before + 0.3


def test_losses_with_a_scale_of_their_own_are_matched_as_probabilities(teacher, small_digits):
    def model(seed: int) -> torch.nn.Module:
        return build_model("mlp:width=16", small_digits, head="cosine", seed=seed)

    loss = LDAM(small_digits.class_counts, scale=10.0)
    run = Run(model, small_digits, loss=loss, procedure=Distillation(teacher, 0.0, 1.0), settings=SETTINGS)
    batch = run.prepare(small_digits.inputs.fetch(torch.arange(50)), small_digits.labels[:50], torch.arange(50))
    said = run.procedure.teach(run, batch.x).softmax(1)
    expected = F.cross_entropy(loss.test_logits(run.model(batch.x)), said)
    assert_close(run.procedure.loss(run, batch), expected)
    assert not torch.equal(loss.test_logits(run.model(batch.x)), run.model(batch.x))


def test_a_teacher_speaks_at_the_scale_of_its_own_loss(small_digits, tmp_path):
    recipe = Recipe(DIGITS, "mlp:width=16", use=("ldam",), settings=SETTINGS)
    folder = str(train(recipe, tmp_path).path)
    run, other = student(small_digits, Distillation(folder)), load_run(folder)
    x = small_digits.floats(torch.arange(50))
    assert_close(run.procedure.teach(run, x), other.predict(small_digits)[:50], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(run.procedure.teach(run, x), other.model.eval()(x).detach(), atol=0.1)


def test_a_run_goes_on_bit_for_bit(teacher, small_digits, tmp_path):
    whole = fit(student(small_digits, Distillation(teacher)))
    fit(student(small_digits, Distillation(teacher)), max_steps=3, folder=tmp_path)
    resumed = fit(student(small_digits, Distillation(teacher)), folder=tmp_path)
    assert all(torch.equal(*pair) for pair in zip(whole.parameters, resumed.parameters, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0 and finite, got 0.0"),
        ({"temperature": -1.0}, "temperature must be > 0 and finite, got -1.0"),
        ({"temperature": math.inf}, "temperature must be > 0 and finite, got inf"),
        ({"hard_weight": 1.1}, r"hard_weight must be in \[0, 1\], got 1.1"),
        ({"hard_weight": -0.1}, r"hard_weight must be in \[0, 1\], got -0.1"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Distillation("runs/teacher", **options)
    with pytest.raises(ValueError, match="must have one shape"):
        soft_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4), 1.0)


def test_a_teacher_that_does_not_fit_is_refused_before_training(teacher, small_digits, wine, tmp_path):
    with pytest.raises(DataError, match="there is no run in nowhere to learn from. Train a teacher first"):
        student(small_digits, Distillation("nowhere"))
    few = small_digits.select(small_digits.labels < 5).replace(
        labels=small_digits.labels[small_digits.labels < 5], class_names=small_digits.class_names[:5]
    )
    with pytest.raises(Incompatible, match=r"of the same classes: .* has 10 \(0, 1, 2, 3, ...\), the run has 5 \(0"):
        student(few, Distillation(teacher))
    larger = small_digits.replace(inputs=_larger(small_digits))
    with pytest.raises(Incompatible, match=r"same input shape: .* has \(1, 8, 8\), the run has \(1, 16, 16\)"):
        student(larger, Distillation(teacher))
    with pytest.raises(Incompatible, match="same classes"):
        student(wine, Distillation(teacher))


def _larger(data):
    from weathered.data.dataset import Dataset

    pixels = data.inputs.fetch(torch.arange(len(data))).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return Dataset.of(pixels, data.labels).inputs


def test_an_unfinished_or_incremental_teacher_is_refused(small_digits, tmp_path, teacher):
    half = tmp_path / "half"
    half.mkdir()
    (half / "run.json").write_text((Path(teacher) / "run.json").read_text())
    with pytest.raises(ValueError, match="is not finished"):
        student(small_digits, Distillation(str(half)))
    recipe = Recipe(DIGITS, "cnn_small:width=8", use=("acil:expansion=16",), settings=Settings(epochs=1, batch_size=50))
    ridge = train(recipe, tmp_path / "runs")
    with pytest.raises(Incompatible, match="needs a teacher that gives one softmax for each sample"):
        student(small_digits, Distillation(str(ridge.path)))


def test_a_fold_and_a_comparison_are_refused_with_a_way_out_of_their_own(weathered, teacher):
    use = ("train", "digits", "--use", f"distillation:teacher={teacher}", "--limit", "100", "--dry-run")
    code, _, err = weathered(*use, "--seed", "0", "--fold", "1/4")
    assert code == 2
    assert "Leave distillation out where folds" in err
    assert weathered(*use, "--seed", "1", "--data-seed", "0")[0] == 0
    arms = ("compare", "digits", "--arms", f"ce,distillation:teacher={teacher}", "--seeds", "2", "--limit", "100")
    code, _, err = weathered(*arms, "--model", "mlp:width=8", "--epochs", "1")
    assert code == 2
    assert "were training rows of the teacher" in err
    assert "runs done" not in err


def test_a_teacher_that_embeds_is_refused_even_where_its_width_is_the_number_of_classes(tmp_path):
    use = ("contrastive:dim=4,hidden=8",)
    recipe = Recipe(DataOptions("captions:40"), "cnn_small:width=8", use=use, settings=Settings(epochs=1))
    embeds = train(recipe.with_settings(batch_size=16), tmp_path)
    with pytest.raises(Incompatible, match="needs a teacher that gives one softmax for each sample"):
        student(load("captions:40"), Distillation(str(embeds.path)))


@pytest.mark.parametrize(
    ("data", "seed", "seen"),
    [
        (DIGITS, 1, True),
        (DataOptions("digits", limit=200, seed=0), 1, False),
        (DataOptions("digits", limit=200, seed=1), 0, True),
        (DataOptions("digits", fold="1/5", seed=0), 0, True),
    ],
)
def test_a_teacher_that_was_trained_on_test_rows_of_the_student_is_refused(teacher, tmp_path, data, seed, seen):
    recipe = Recipe(data, "mlp:width=8", use=(f"distillation:teacher={teacher}",), settings=Settings(epochs=1))
    recipe = recipe.with_settings(seed=seed, batch_size=100)
    if not seen:
        assert train(recipe, tmp_path).state == "done"
        return
    rows = prepare(recipe).test.rows_in_source
    count = int(torch.isin(rows, prepare(Recipe(DIGITS)).train.rows_in_source).sum())
    with pytest.raises(Incompatible, match=f"{count} of the {len(rows)} test rows were training rows of the teacher"):
        train(recipe, tmp_path)
    assert count > 0
    assert not list(tmp_path.iterdir())


def test_test_rows_of_another_file_are_not_those_of_the_teacher(teacher, tmp_path):
    data, images = load("digits"), tmp_path / "digits.npz"
    np.savez(images, x=data.inputs.fetch(torch.arange(300)).numpy(), y=data.labels[:300].numpy())
    assert trained_on(data, DataOptions("digits", str(images)), torch.arange(300), DataOptions("digits")) == 0
    assert trained_on(data, DataOptions("digits"), torch.arange(300), DataOptions(str(images))) == 0
    copy = tmp_path / "copy.npz"
    copy.write_bytes(images.read_bytes())
    same = DataOptions("digits", str(copy)), torch.arange(5, 300), DataOptions(str(images))
    assert trained_on(data.select(torch.arange(8)), *same) == 3


def test_a_student_is_trained_and_read_back_from_the_command_line(weathered, teacher, tmp_path):
    asked = ("train", "digits", "--limit", "100", "--epochs", "1", "--use")
    code, _, err = weathered(*asked, f"distillation:teacher={teacher}", "--use", "mixup", "--json")
    assert code == 0, err
    assert (tmp_path / "runs").is_dir()
    (folder,) = [path for path in (tmp_path / "runs").iterdir() if (path / "done").exists()]
    assert load_run(folder).model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    for spec, message in (
        (f"distillation:teacher={teacher},temperature=0", "temperature must be > 0"),
        ("distillation:teacher=runs/none", "there is no run in runs/none to learn from"),
        ("distillation", "needs the option 'teacher'"),
        (f"distillation:teacher={teacher},h=0.5", "has no option 'h'"),
    ):
        code, _, err = weathered(*asked, spec)
        assert code == 2
        assert message in err
        assert "Traceback" not in err
