"""CALS in a run: multipliers learned of validation data, limits of training, and resuming."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from scaled import Multiplied, Scaled
from weathered.core.batch import Batch
from weathered.core.errors import Incompatible, NonFinite
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.roles import Output
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.nn.build import build_model
from weathered.terms.cals import CALS, constraint

SETTINGS = Settings(epochs=4, batch_size=50, lr=0.05)


def logits_of(*shape: int, scale: float = 5.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def learn(term: CALS, *batches: torch.Tensor, epochs: int = 1, labels: torch.Tensor | None = None) -> CALS:
    term.reset()
    for logits in batches:
        term.update(logits, labels)
    term.step(epochs)
    return term


def make(small_digits, *terms, loss=None, margin=2.0, settings=SETTINGS, shuffled=False) -> Run:
    rows = torch.arange(len(small_digits))
    train, validation = small_digits.select(rows[:150]), small_digits.select(rows[150:])
    if shuffled:
        validation = validation.replace(labels=validation.labels[torch.randperm(50, generator=generator(1))])
    return Run(
        lambda seed: build_model("cnn_small:width=8", train, seed=seed),
        train,
        terms=terms or (CALS(10, margin=margin),),
        loss=loss,
        validation=validation,
        settings=settings,
    )


def test_a_run_learns_the_multipliers_of_its_validation_data(small_digits):
    term = CALS(10, margin=0.3)
    run = make(small_digits, term)
    fit(run, max_steps=run.steps_per_epoch)
    assert run.validation is not None
    by_hand = learn(CALS(10, margin=0.3), *run.predict(run.validation).split(7))
    assert_close(term.multipliers, by_hand.multipliers)
    assert_close(term.violation, by_hand.violation)
    assert run.model.training
    fit(run)
    assert float(term.multipliers.max()) > 1e-3
    assert len(term.multipliers.unique()) > 1
    again = fit(make(small_digits, term))
    assert all(p.equal(q) for p, q in zip(again.model.parameters(), run.model.parameters(), strict=True))


def test_labels_of_validation_data_say_nothing(small_digits):
    terms = [CALS(10, margin=0.15, rho_step=1, tau=0.0) for _ in range(2)]
    for term, shuffled in zip(terms, (False, True), strict=True):
        fit(make(small_digits, term, shuffled=shuffled))
    assert torch.equal(terms[0].multipliers, terms[1].multipliers)
    assert torch.equal(terms[0].rho, terms[1].rho)
    assert float(terms[0].rho.max()) > 1


def test_without_updates_the_loss_has_half_of_the_squared_excess(small_digits):
    term = CALS(10, margin=0.2, lambda_step=5, rho_step=-1)
    run = fit(make(small_digits, term, settings=SETTINGS))
    assert (term.multipliers == 1e-6).all()
    assert (term.rho == 1).all()
    run.begin_step()
    rows = torch.arange(50)
    batch = run.prepare(run.train.inputs.fetch(rows), run.train.labels[rows], rows)
    output = run.forward(batch.x)
    excess = constraint(output.logits, 0.2).relu()
    assert float(excess.detach().mean()) > 0.05
    expected = F.cross_entropy(output.logits, batch.target.single()) + excess.square().mean() / 2
    assert_close(run.objective(output, batch), expected, atol=1e-5, rtol=0)


def test_on_data_within_the_margin_it_is_training_without_it_bit_for_bit(small_digits):
    wide = make(small_digits, CALS(10, margin=1e3, lambda_min=0.0))
    plain = make(small_digits, lambda run, batch, output: output.logits.new_zeros(()))
    for run in (wide, plain):
        fit(run)
    assert all(p.equal(q) for p, q in zip(wide.model.parameters(), plain.model.parameters(), strict=True))


def test_a_loss_with_a_scale_of_its_own_is_measured_at_that_scale(small_digits):
    term, learned = CALS(10, margin=2.0), CALS(10, margin=2.0)
    run = make(small_digits, learned, loss=Scaled())
    z = logits_of(50, 10).float()
    batch = Batch.of(torch.zeros(50, 1, 8, 8), torch.zeros(50).long())
    assert_close(term(run, batch, Output(z)), term.penalties(Multiplied()(z)))
    fit(run, max_steps=run.steps_per_epoch)
    assert run.validation is not None
    assert_close(learned.multipliers, learn(term, run.predict(run.validation)).multipliers)


def test_images_without_a_labelled_pixel_add_nothing():
    rng = generator(0, "maps")
    pixels = torch.randint(256, (6, 3, 8, 8), generator=rng).to(torch.uint8)
    mask = torch.randint(3, (6, 8, 8), generator=rng).to(torch.uint8)
    mask[::2] = 255
    data = Dataset.of(pixels, torch.arange(6) % 3, extra={"mask": mask})
    term = CALS(3, margin=0.1)
    run = Run(
        lambda seed: build_model("unet:width=4,depth=1", data, seed=seed),
        data,
        terms=[term],
        validation=data.select(torch.arange(3, 6)),
        settings=Settings(epochs=2, batch_size=1, lr=0.05),
    )
    run.begin_step()
    rows = torch.tensor([0, 2])
    batch = run.prepare(data.floats(rows), data.labels[rows], rows)
    assert float(run.objective(run.forward(batch.x), batch).detach()) == 0
    fit(run)
    assert float(term.multipliers.max()) > 1e-3


def test_resumes_bit_for_bit(small_digits, tmp_path):
    for steps in (4, 6):
        terms = [CALS(10, margin=0.3, rho_step=1) for _ in range(3)]
        whole = fit(make(small_digits, terms[0]))
        fit(make(small_digits, terms[1]), max_steps=steps, folder=tmp_path / str(steps))
        resumed = fit(make(small_digits, terms[2]), folder=tmp_path / str(steps))
        assert all(p.equal(q) for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
        for name, value in terms[0].state_dict().items():
            assert torch.equal(terms[2].state_dict()[name], value)


def test_a_run_is_refused_without_held_out_data_and_stops_before_an_update_from_broken_logits(small_digits):
    with pytest.raises(Incompatible, match="--validation 0.1"):
        Run(build_model("mlp", small_digits), small_digits, terms=[CALS(10)])
    term = CALS(10)
    run = make(small_digits, term)
    with torch.no_grad():
        next(run.model.parameters()).fill_(torch.nan)
    with pytest.raises(NonFinite):
        term.after_epoch(run)
    assert (term.multipliers == 1e-6).all()
