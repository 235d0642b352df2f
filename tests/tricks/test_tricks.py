"""Tricks: what each sets, that it stays so when made twice, that wrong combinations are refused, that off is off."""

import math
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from torch.testing import assert_close

from weathered.assemble import import_part, resolve
from weathered.comparison import comparison_of
from weathered.core.errors import Incompatible, SpecError
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.losses.cross_entropy import LabelSmoothing
from weathered.nn.build import build_model
from weathered.recipe import DataOptions, Recipe
from weathered.registry import ENTRIES, TABLE
from weathered.tricks.linear_scaling import LinearScaling
from weathered.tricks.warm_up import WarmUp

# large decay is for another optimizer, see tests/procedures/test_adversarial_training.py
TRICKS = [entry.slug for entry in ENTRIES if entry.slot == "trick" and entry.slug != "large-decay"]
OFF = Settings(lr=0.1, batch_size=64, schedule="constant")
SMALL = "resnet:depth=26,width=8,small=true"


def recipe(*use: str, model: str = SMALL, **settings) -> Recipe:
    return Recipe(model=model, use=use, settings=replace(OFF, **settings))


def rates(settings: Settings, steps: int) -> list[float]:
    """The learning rate of each step of training, as the engine asks for it."""
    return [settings.learning_rate(step / steps, 1 / steps) for step in range(steps)]


@pytest.mark.parametrize("slug", TRICKS)
def test_a_trick_makes_another_recipe_and_twice_is_once(slug):
    plain, made = recipe(), recipe(slug)
    assert made.hash != plain.hash
    assert (made.applied.settings, made.applied.model) != (plain.settings, plain.model)
    assert made.applied.applied == made.applied
    assert made.applied.hash == made.hash
    again = Recipe.from_tree(made.to_tree())
    assert again == made
    assert again.hash == made.hash
    assert made.idle_tricks() == []
    assert made.applied.idle_tricks() == [f"{slug} changes nothing here: the recipe's settings or model say the same."]


@pytest.mark.parametrize("slug", TRICKS)
def test_what_a_trick_does_not_name_stays(slug):
    made, before = recipe(slug).applied, recipe()
    changed = [name for name in Settings.names() if getattr(made.settings, name) != getattr(before.settings, name)]
    changes = import_part(TABLE[slug]).changes
    assert [f"the model's {name}" for name in ("zero_gamma", "variant") if name in made.model] + changed == [changes]


@pytest.mark.parametrize("pair", list(combinations(TRICKS, 2)), ids="+".join)
def test_tricks_go_together_in_any_order_unless_they_set_the_same(pair):
    names = [import_part(TABLE[slug]).changes for slug in pair]
    if names[0] == names[1]:
        with pytest.raises(SpecError, match=f"{pair[0]} and {pair[1]} both set the model's variant. Drop one."):
            resolve(pair)
        return
    first, second = recipe(*pair).applied, recipe(*reversed(pair)).applied
    assert first.settings == second.settings
    assert sorted(first.model.partition(":")[2].split(",")) == sorted(second.model.partition(":")[2].split(","))


def test_recipes_without_tricks_are_named_as_before_there_were_any():
    settings = Recipe().canonical()["settings"]
    assert "lr_samples" not in settings
    assert "no_bias_decay" not in settings
    assert recipe("linear-scaling").canonical()["settings"]["lr_samples"] == 256
    assert Recipe().applied == Recipe()


def test_the_rate_is_in_proportion_to_the_batch():
    for batch in (1, 50, 256, 500, 1024):
        settings = recipe("linear-scaling", batch_size=batch).applied.settings
        assert settings.learning_rate(0.5) / batch == pytest.approx(0.1 / 256, rel=1e-12)
    settings = recipe("linear-scaling:samples=50", lr=0.02, batch_size=500).applied.settings
    assert settings.peak_lr == pytest.approx(0.2, rel=1e-12)
    assert settings.lr == 0.02


def test_the_rate_of_a_run_is_scaled_by_the_batch_it_really_has(digits):
    settings = LinearScaling(100).settings(Settings(batch_size=50, lr=0.2, schedule="constant", epochs=1))
    run = fit(Run(build_model("cnn_small:width=8", digits), digits, settings=settings), max_steps=1)
    assert run.optimizer.param_groups[0]["lr"] == 0.1
    few = digits.select(torch.arange(49))
    with pytest.raises(SpecError, match="scaled to batch_size 50, but digits has 49 training samples. Lower --batch"):
        Run(build_model("cnn_small:width=8", digits), few, settings=settings)


def test_the_rate_rises_linearly_and_falls_from_there_without_a_jump():
    settings = recipe("warm-up:share=0.2", "cosine", lr=0.4).applied.settings
    got = rates(settings, 50)
    # counted from 1: the first of 10 steps has a tenth of the rate, the tenth has all of it
    assert got[:10] == pytest.approx([0.4 * (i + 1) / 10 for i in range(10)], rel=1e-12)
    assert got[9] == pytest.approx(got[10], rel=1e-12)
    assert all(before > after for before, after in pairwise(got[10:]))
    assert settings.learning_rate(0.2 - 1e-12) == pytest.approx(0.4, rel=1e-9)


def test_half_a_cosine_from_the_peak_over_its_half_to_nothing():
    settings = recipe("cosine", schedule="step").applied.settings
    assert settings.learning_rate(0.0) == 0.1
    assert settings.learning_rate(0.5) == pytest.approx(0.05, rel=1e-12)
    assert settings.learning_rate(1.0) == pytest.approx(0.0, abs=1e-12)
    assert settings.learning_rate(0.25) == pytest.approx(0.05 * (1 + math.sqrt(0.5)), rel=1e-12)
    warm = recipe("cosine", "warm-up:share=0.5").applied.settings
    assert warm.learning_rate(0.75) == pytest.approx(0.05, rel=1e-12)


def weights_of(settings: Settings, model: str, data) -> torch.Tensor:
    run = Run(lambda seed: build_model(model, data, seed=seed), data, settings=replace(settings, epochs=1))
    fit(run, max_steps=3)
    return torch.cat([p.detach().flatten() for p in run.parameters])


def test_tricks_that_say_what_is_so_already_train_bit_for_bit_as_none(small_digits):
    plain = recipe(schedule="cosine", weight_decay=0.0)
    same = recipe("cosine", "no-bias-decay", "linear-scaling:samples=64", schedule="cosine", weight_decay=0.0).applied
    assert torch.equal(*(weights_of(r.settings, SMALL, small_digits) for r in (plain, same)))
    spelled = f"{SMALL},variant=a,zero_gamma=false"
    assert torch.equal(*(weights_of(plain.settings, model, small_digits) for model in (SMALL, spelled)))
    scaled = recipe("linear-scaling:samples=32", schedule="cosine", weight_decay=0.0).applied
    assert not torch.equal(*(weights_of(r.settings, SMALL, small_digits) for r in (plain, scaled)))


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, -0.1, math.nan])
def test_a_warm_up_as_long_as_training_or_none_is_an_error(share):
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\)"):
        WarmUp(share)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        LinearScaling(0)
    with pytest.raises(ValueError, match="lr_samples must be at least 1, got 0"):
        Settings(lr_samples=0)


@pytest.mark.parametrize(
    ("use", "model", "settings", "message"),
    [
        (
            ("zero-gamma",),
            "cnn_small",
            {},
            "zero-gamma sets the option 'zero_gamma' of the model resnet, which",
        ),
        (
            ("resnet-d",),
            "timm:resnet18",
            {},
            "timm:resnet18 does not have. Remove resnet-d, or use --model",
        ),
        (("resnet-d",), "resnet:variant=b", {}, "resnet-d makes the model's variant d, but .* variant=b. Drop one"),
        (("linear-scaling",), "mlp", {"optimizer": "adamw"}, "linear-scaling is a rule of sgd; adamw asks"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(use, model, settings, message):
    with pytest.raises(Incompatible, match=message):
        _ = recipe(*use, model=model, **settings).hash


def test_a_trick_may_be_there_once():
    with pytest.raises(SpecError, match="cosine is there twice, perhaps once in a bundle such as bag-of-tricks"):
        resolve(["bag-of-tricks", "cosine"])
    with pytest.raises(SpecError, match="resnet-d and resnet-b both set the model's variant"):
        resolve(["bag-of-tricks", "resnet-b"])


def test_the_bundle_takes_what_goes_together():
    made = recipe("bag-of-tricks:share=0.1", weight_decay=1e-4).applied
    assert made.model == f"{SMALL},zero_gamma=true,variant=d"
    assert made.settings == replace(
        OFF, weight_decay=1e-4, lr_samples=256, warmup=0.1, schedule="cosine", no_bias_decay=True
    )
    options = {use.slug: use.options for use in resolve(made.use)}
    assert options["mixup"]["alpha"] == 0.2
    assert options["label-smoothing"] == {"smoothing": 0.1}


def test_runs_of_one_recipe_with_and_without_a_trick_are_two_arms(weathered, tmp_path):
    shared = ("train", "digits", "--limit", "60", "--epochs", "1", "--batch-size", "20", "--model", SMALL, "--json")
    for use in ((), ("--use", "zero-gamma"), ("--use", "cosine")):
        code, out, err = weathered(*shared, *use)
        assert code == 0, err
        assert ("cosine changes nothing here" in out) == (use == ("--use", "cosine"))
    from weathered.loaded_run import load_run
    from weathered.store import find_runs

    runs = find_runs([tmp_path / "runs"])
    result = comparison_of(runs, tmp_path)
    assert sorted(arm.name for arm in result.arms) == ["cosine", "cross-entropy", "zero-gamma"]
    assert result.recipe.model == SMALL
    assert result.notes() == ("cosine changes nothing here: the recipe's settings or model say the same.",)
    loaded = load_run(result.arm("zero-gamma").folders[0].path)
    record = loaded.folder.read_json("run.json")
    assert record["recipe"]["model"] == SMALL
    assert record["resolved"]["model"] == f"{SMALL},zero_gamma=true"
    logits = loaded.predict(loaded.splits.test)
    accuracy = float((logits.argmax(1) == loaded.splits.test.labels).double().mean())
    assert accuracy == pytest.approx(record["results"]["accuracy"]["value"])


def test_options_of_a_recipe_that_takes_its_tricks_back_are_its_own():
    made = recipe("cosine", "zero-gamma")
    assert replace(made, use=()).applied == recipe()
    assert made.with_settings(seed=3).applied.settings == replace(OFF, schedule="cosine", seed=3)
    assert replace(made, data=DataOptions(limit=50)).applied.model == f"{SMALL},zero_gamma=true"


def fitted_gap(smoothing: float, classes: int) -> float:
    """The logit of the label minus the others of a free logit vector at the minimum of the loss."""
    logits = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = LabelSmoothing(smoothing)(logits, torch.tensor([0])).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    best = logits.detach()[0]
    assert_close(best[1:], best[1].expand(classes - 1))
    return float(best[0] - best[1])


def test_the_best_logits_under_smoothing_have_the_gap_of_either_form():
    classes, eps = 10, 0.1
    assert fitted_gap(eps, classes) == pytest.approx(math.log((classes * (1 - eps) + eps) / eps), abs=1e-3)
    assert fitted_gap(eps, classes) == pytest.approx(4.511, abs=1e-3)
    # the paper spreads eps over the other classes alone, which is eps K / (K - 1) here
    paper = fitted_gap(eps * classes / (classes - 1), classes)
    assert paper == pytest.approx(math.log((classes - 1) * (1 - eps) / eps), abs=1e-3)
    assert paper == pytest.approx(4.394, abs=1e-3)


@pytest.mark.filterwarnings("ignore:this cpu has no bfloat16")
def test_low_precision_agrees_with_float32_and_keeps_its_weights(small_digits):
    found = []
    for precision in ("32-true", "bf16-mixed"):
        settings = replace(OFF, precision=precision, momentum=0.0, weight_decay=0.0, lr=1e-4)
        run = Run(build_model("mlp", small_digits), small_digits, settings=settings)
        batch = run.prepare(small_digits.inputs.fetch(torch.arange(64)), small_digits.labels[:64], torch.arange(64))
        loss = run.objective(run.forward(batch.x), batch)
        loss.backward()
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in run.parameters)
        gradient = torch.cat([p.grad.flatten() for p in run.parameters])
        before = [p.detach().clone() for p in run.parameters]
        run.optimizer.step()
        for parameter, was in zip(run.parameters, before, strict=True):
            assert_close(parameter.detach(), was - 1e-4 * parameter.grad, rtol=1e-6, atol=1e-8)
        found.append((float(loss.detach()), gradient))
    assert found[0][0] != found[1][0]
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-2)
    # eight bits of a number are kept, and errors grow through the layers
    assert (found[1][1] - found[0][1]).norm() < 0.04 * found[0][1].norm()


@pytest.mark.filterwarnings("ignore:this cpu has no bfloat16")
def test_an_update_too_small_for_bfloat16_is_not_lost(small_digits):
    made = recipe("low-precision", lr=1e-4, momentum=0.0, weight_decay=0.0).applied
    run = Run(build_model("cnn_small:width=8", small_digits), small_digits, settings=made.settings)
    scale = run.model.body.stages[0][0][1].weight
    scale.grad = torch.ones_like(scale)
    run.optimizer.step()
    assert_close(scale.detach(), torch.full_like(scale, 1 - 1e-4), rtol=1e-7, atol=0)
    assert torch.equal(scale.detach().bfloat16(), torch.ones_like(scale).bfloat16())
