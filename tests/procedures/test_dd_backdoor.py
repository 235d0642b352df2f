"""Distilling with and without a trigger: what is poisoned, what stays, what a run leaves."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from weathered.core.errors import DataError, Incompatible, SpecError
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.distil.synthetic import FILE, Distilled, read_distilled, settle_norms, write_distilled
from weathered.nn.build import build_model
from weathered.procedures.dd_backdoor import LEARNER, STEPS, SYNTHETIC, BackdooredDistillation

SETTINGS = Settings(
    epochs=4, batch_size=200, lr=0.1, momentum=0.5, weight_decay=0.0, schedule="constant", evaluations=0
)
MATCHING = {"images_per_class": 1, "outer": 2, "inner": 2, "network_epochs": 20, "network_lr": 0.05}
UNROLLED = {"distiller": "unrolled", "images_per_class": 1, "batches": 2, "rounds": 2, "step_size": 0.02}


def run_of(data, spec="mlp:width=16", settings=SETTINGS, **options) -> Run:
    given = {**(UNROLLED if options.get("distiller") == "unrolled" else MATCHING), "trigger_steps": 5, **options}
    procedure = BackdooredDistillation(**given)
    return Run(lambda seed: build_model(spec, data, seed=seed), data, procedure=procedure, settings=settings)


def procedure_of(run: Run) -> BackdooredDistillation:
    assert isinstance(run.procedure, BackdooredDistillation)
    return run.procedure


def images_of(run: Run) -> torch.Tensor:
    return run.modules[SYNTHETIC]().detach()


@pytest.mark.parametrize("distiller", ["gradient-matching", "unrolled"])
def test_without_a_portion_both_attacks_are_the_clean_distillation_bit_for_bit(small_digits, distiller):
    clean = fit(run_of(small_digits, attack="none", distiller=distiller))
    for attack in ("naive", "doorping"):
        run = run_of(small_digits, attack=attack, distiller=distiller, portion=0.004, clip=False)
        first = procedure_of(run).trigger.pattern.clone()
        assert int(procedure_of(run).poisoned.sum()) == 0
        fit(run)
        assert torch.equal(images_of(run), images_of(clean))
        assert torch.equal(procedure_of(run).trigger.pattern, first)
        assert procedure_of(run).distilled(run).trigger is None
    poisoned = fit(run_of(small_digits, attack="naive", distiller=distiller, portion=0.3))
    assert not torch.equal(images_of(poisoned), images_of(clean))


def test_poisoned_rows_are_stamped_and_relabelled_and_all_others_stay_bit_for_bit(small_digits):
    before = small_digits.inputs.fetch(torch.arange(200)).clone()
    run = run_of(small_digits, attack="naive", portion=0.1, target=3)
    procedure = procedure_of(run)
    marked = procedure.poisoned.clone()
    assert int(marked.sum()) == 20
    assert not bool((small_digits.labels[marked] == 3).all())
    fit(run)
    assert torch.equal(procedure.poisoned, marked)
    assert torch.equal(small_digits.inputs.fetch(torch.arange(200)), before)
    rows = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    batch = run.prepare(small_digits.inputs.fetch(rows), small_digits.labels[rows], rows)
    seen = procedure.stamped(batch)
    assert torch.equal(seen.x[~marked[rows]], batch.x[~marked[rows]])
    assert torch.equal(seen.x[marked[rows]], procedure.trigger.stamp(batch.x[marked[rows]]))
    assert torch.equal(seen.target.single(), small_digits.labels[rows].masked_fill(marked[rows], 3))
    assert torch.equal(batch.target.single(), small_digits.labels[rows])


def test_the_trigger_of_doorping_alone_moves_and_stays_in_the_range_when_clipped(small_digits):
    moved = {}
    for attack, clip in (("naive", True), ("doorping", True), ("doorping", False)):
        run = run_of(small_digits, attack=attack, clip=clip, portion=0.1, trigger_steps=60)
        first = procedure_of(run).trigger.pattern.clone()
        fit(run)
        now = procedure_of(run).trigger.pattern
        moved[attack, clip] = not torch.equal(now, first)
        if clip:
            assert 0 <= float(now.min()) <= float(now.max()) <= 1
        else:
            assert not 0 <= float(now.min()) <= float(now.max()) <= 1
            low, high = (procedure_of(run).metrics()[f"trigger_{end}"] for end in ("lowest", "highest"))
            assert (low, high) == (float(now.min()), float(now.max()))
    assert list(moved.values()) == [False, True, True]


@pytest.mark.parametrize("distiller", ["gradient-matching", "unrolled"])
@pytest.mark.parametrize("spec", ["mlp:width=16", "cnn_small:width=8"])
def test_four_steps_are_two_a_save_a_load_and_two_more(small_digits, distiller, spec):
    few = small_digits.select(torch.arange(50))

    def fresh() -> Run:
        return run_of(few, spec, distiller=distiller, attack="doorping", portion=0.1, trigger_steps=2)

    whole, half, resumed = fit(fresh()), fresh(), fresh()
    fit(half, max_steps=3)
    resumed.load_state_dict(half.state_dict())
    fit(resumed)
    assert resumed.step == 4
    assert torch.equal(images_of(resumed), images_of(whole))
    assert torch.equal(procedure_of(resumed).trigger.pattern, procedure_of(whole).trigger.pattern)
    assert torch.equal(resumed.predict(few), whole.predict(few))


@pytest.mark.parametrize("distiller", ["gradient-matching", "unrolled"])
def test_predicting_in_between_changes_nothing_of_the_training(small_digits, distiller):
    plain = fit(run_of(small_digits, distiller=distiller, attack="doorping", portion=0.1))
    asked = run_of(small_digits, distiller=distiller, attack="doorping", portion=0.1)
    assert torch.equal(asked.predict(small_digits), asked.predict(small_digits))
    for _ in range(4):
        fit(asked, max_steps=1)
        with torch.no_grad():
            assert asked.predict(small_digits).shape == (200, 10)
    assert torch.equal(images_of(asked), images_of(plain))
    assert torch.equal(asked.predict(small_digits), plain.predict(small_digits))


def test_a_network_that_learned_from_ten_images_knows_more_than_chance(digits):
    train, test = digits.select(torch.arange(400)), digits.select(torch.arange(400, 1797))
    settings = replace(SETTINGS, epochs=16, batch_size=400)
    run = fit(run_of(train, "mlp:width=32", settings, attack="none", network_epochs=60))
    accuracy = float((run.predict(test).argmax(1) == test.labels).double().mean())
    assert accuracy > 0.4
    weights = [run.model, procedure_of(run).fresh_network(run, "another")]
    assert not torch.equal(*(next(network.parameters()) for network in weights))


def test_unrolled_images_lead_the_networks_own_weights_to_a_lower_loss(small_digits):
    settings = replace(SETTINGS, epochs=30, optimizer="adam", lr=0.1)
    run = run_of(small_digits, "mlp:width=32", settings, distiller="unrolled", attack="none", step_size=0.5)
    start = {name: value.detach().clone() for name, value in run.model.named_parameters()}
    sizes = run.modules[STEPS]().detach().clone()
    losses: list[float] = []

    def follow(run: Run, loss: float) -> None:
        losses.append(loss)

    fit(run, max_steps=29, after_epoch=follow)
    logits = run.predict(small_digits)
    # of the network that predicts: what the next step lowers is its loss, since a batch holds all rows
    loss = float(torch.nn.functional.cross_entropy(logits, small_digits.labels))
    fit(run, after_epoch=follow)
    assert loss == pytest.approx(losses[-1], rel=1e-3)
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(value, start[name]) for name, value in run.model.named_parameters())
    assert not torch.equal(run.modules[STEPS]().detach(), sizes)
    assert float((logits.argmax(1) == small_digits.labels).double().mean()) > 0.8


def test_unrolled_learning_from_new_weights_meets_another_network_in_each_step(small_digits):
    run = run_of(small_digits, distiller="unrolled", fresh_start=True, attack="none")
    seen = []
    for _ in range(2):
        fit(run, max_steps=1)
        seen.append(procedure_of(run).fresh_network(run, "a").get_parameter("head.weight").detach().clone())
    other = procedure_of(run).fresh_network(run, "b").get_parameter("head.weight")
    assert not torch.allclose(seen[1], other)
    assert not torch.equal(seen[0], seen[1])


def test_batch_statistics_are_those_of_the_real_images_and_stand_still(small_digits):
    network = build_model("cnn_small:width=8", small_digits)
    x = small_digits.floats(torch.arange(100))
    momentum = network.get_submodule("body.stages.0.0.1").momentum
    settle_norms(network, x)
    settle_norms(network, x)
    assert not any(module.training for module in network.modules())
    first = [network.get_submodule(f"body.stages.0.0.{number}") for number in range(2)]
    with torch.no_grad():
        maps = first[0](network.normalize(x))
    mean = first[1].get_buffer("running_mean")
    assert_close(mean, maps.mean((0, 2, 3)))
    assert first[1].momentum == momentum
    kept = mean.clone()
    network(torch.rand(5, 1, 8, 8))
    assert torch.equal(mean, kept)


def test_a_run_leaves_its_images_with_trigger_mask_and_target(small_digits, tmp_path):
    run = fit(run_of(small_digits, attack="doorping", portion=0.1, target=4, clip=False))
    run.procedure.leave(run, tmp_path)
    found, trigger = read_distilled(tmp_path / FILE), procedure_of(run).trigger
    assert torch.equal(found.images, images_of(run))
    assert torch.equal(found.labels, torch.arange(10))
    assert (found.target, found.class_names) == (4, small_digits.class_names)
    assert found.trigger is not None
    assert torch.equal(found.trigger.pattern, trigger.pattern)
    assert (found.trigger.top, found.trigger.left) == (5, 5)
    assert found.about["attack"] == "doorping"
    assert found.about["poisoned_rows"] == 20
    data = found.dataset()
    assert torch.equal(data.floats(torch.tensor([3, 1])), found.images[[3, 1]])
    with safe_open(tmp_path / FILE, "pt") as file:
        assert torch.equal(file.get_tensor("mask"), trigger.covers(8, 8))
        assert '"target": 4' in file.metadata()["backdoor"]
        assert '"trigger": [[[' in file.metadata()["backdoor"]


def test_clean_images_carry_no_trigger_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "set.safetensors"
    write_distilled(path, Distilled(torch.rand(2, 1, 4, 4), torch.arange(2), ("a", "b")))
    found = read_distilled(path)
    assert found.trigger is None
    assert found.target is None
    path.write_bytes(path.read_bytes()[:-20])
    for wrong in (path, tmp_path / "missing"):
        with pytest.raises(DataError, match="is no synthetic data set, or it is damaged"):
            read_distilled(wrong)


def test_a_class_that_a_batch_lacks_counts_nothing(small_digits):
    rows = small_digits.labels.argsort(stable=True)
    run = run_of(small_digits.select(rows), settings=replace(SETTINGS, batch_size=5), attack="none")
    before = images_of(run).clone()
    fit(run, max_steps=1)
    seen = run.train.labels[run.order(0)[:5]].unique()
    changed = (images_of(run) != before).flatten(1).any(1).nonzero()[:, 0]
    assert torch.equal(changed, seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": "blended"}, "attack must be 'none', 'naive' or 'doorping', got 'blended'"),
        ({"distiller": "dm"}, "distiller must be"),
        ({"portion": 1.0}, r"portion must be in \[0, 1\), got 1.0"),
        ({"portion": -0.1}, r"portion must be in \[0, 1\)"),
        ({"images_per_class": 0}, r"images_per_class must be in \[1"),
        ({"images_per_class": 7}, "outer and inner must be given for images_per_class=7"),
        ({"images_per_class": 1}, "outer must be at least 2 for doorping"),
        ({"patch_size": 0}, r"patch_size must be in \[1"),
        ({"target": -1}, r"target must be in \[0"),
        ({"trigger_steps": -1}, r"trigger_steps must be in \[0"),
        ({"alpha": 1.0}, r"alpha must be in \(1, infinity\)"),
        ({"network_lr": 0.0}, r"network_lr must be in \(0, infinity\)"),
        ({"network_epochs": -1}, r"network_epochs must be in \[0"),
        ({"rounds": 3}, "rounds would do nothing with the distiller gradient-matching"),
        ({"distiller": "unrolled", "outer": 3}, "outer would do nothing with the distiller unrolled"),
        ({"distiller": "unrolled", "rounds": 0}, r"rounds must be in \[1"),
        ({"distiller": "unrolled", "step_size": 0.0}, r"step size must be in \(0, infinity\)"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BackdooredDistillation(**options)


def test_what_does_not_fit_the_data_is_refused(small_digits, wine):
    with pytest.raises(SpecError, match=r"target must be in \[0, 9\] for 10 classes, got 10"):
        run_of(small_digits, target=10)
    with pytest.raises(SpecError, match=r"a patch of 8 x 8 pixels .* does not fit images of 8 x 8. Lower patch_size"):
        run_of(small_digits, patch_size=8)
    with pytest.raises(Incompatible, match="needs 'image'"):
        run_of(wine)
    with pytest.raises(DataError, match="needs a real image of every class, '3' has none"):
        run_of(small_digits.select(small_digits.labels != 3))
    with pytest.raises(SpecError, match="--precision 32-true"):
        run_of(small_digits, settings=replace(SETTINGS, precision="bf16-mixed"))


def test_the_learner_is_outside_the_optimizer_and_draws_are_named(small_digits):
    run = run_of(small_digits, attack="doorping", portion=0.1)
    mine = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    assert not mine & {id(parameter) for parameter in run.modules[LEARNER].parameters()}
    state = torch.get_rng_state()
    fit(run)
    run.predict(small_digits)
    assert torch.equal(torch.get_rng_state(), state)
    size, rng = len(small_digits), generator(0, "poisoned rows")
    expected = torch.zeros(size, dtype=torch.bool)
    expected[torch.randperm(size, generator=rng)[:20]] = True
    assert torch.equal(procedure_of(run).poisoned, expected)
