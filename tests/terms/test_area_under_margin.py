"""Area under the margin: closed forms, training that it does not touch, resuming, and what a run keeps of it."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from weathered.audit.labels import area_under_margin, margins
from weathered.audit.labels.of_run import LabelOptions, audit_run_labels, kept_areas
from weathered.core.errors import DataError, Incompatible, SpecError
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.loaded_run import load_run
from weathered.mixing.mixup import MixUp
from weathered.recipe import DataOptions, Recipe
from weathered.store import RunFolder
from weathered.terms.area_under_margin import AreaUnderMargin, margin
from weathered.training import train

STILL = Settings(epochs=3, batch_size=40, lr=1e-30, weight_decay=0.0)
"""Training that moves nothing, so that all margins of a row are equal."""


def flat(seed: int = 0, dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 10))


def test_margin_by_hand_and_as_the_audit_has_it():
    logits = torch.tensor([[2.0, 5.0, 1.0], [4.0, 0.5, 3.0], [1.0, 1.0, 1.0]])
    assert margin(logits, torch.tensor([1, 2, 0])).tolist() == [3.0, -1.0, 0.0]
    drawn = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 7
    assert_close(margin(drawn, labels).numpy(), margins(drawn.numpy(), labels.numpy()), check_dtype=False)
    with pytest.raises(ValueError, match="at least 2 classes"):
        margin(torch.zeros(3, 1), torch.zeros(3).long())


def test_a_network_that_stays_has_its_margin_as_area(small_digits):
    term = AreaUnderMargin()
    run = fit(Run(flat(dropout=0.0), small_digits, terms=[term], settings=STILL))
    seen = term.visits > 0
    assert int(term.visits.sum()) == run.total_steps * 40
    expected = margin(run.predict(small_digits), small_digits.labels)
    assert_close(term.area[seen], expected[seen].double(), atol=1e-5, rtol=1e-5)
    assert term.area[~seen].isnan().all()


def test_area_is_the_mean_over_epochs(small_digits):
    """Against the audit's own function, from margins that are recorded epoch by epoch."""
    settings = Settings(epochs=4, batch_size=len(small_digits))
    rows = torch.full((4, len(small_digits)), torch.nan, dtype=torch.float64)

    class Watched(AreaUnderMargin):
        def __call__(self, run, batch, output):
            rows[run.epoch, batch.index] = margin(output.logits.detach(), batch.target.single()).double()
            return super().__call__(run, batch, output)

    term, late = Watched(), AreaUnderMargin(from_epoch=2)
    fit(Run(flat, small_digits, terms=[term, late], settings=settings))
    assert_close(term.area, torch.as_tensor(area_under_margin(rows)))
    assert_close(late.area, rows[2:].mean(0))


def test_training_with_it_is_training_without_it_bit_for_bit(small_digits):
    settings = Settings(epochs=2, batch_size=50)
    plain = fit(Run(flat, small_digits, settings=settings)).model.state_dict()
    watched = fit(Run(flat, small_digits, terms=[AreaUnderMargin()], settings=settings)).model.state_dict()
    assert all(plain[name].equal(watched[name]) for name in plain)


def test_a_second_look_within_a_step_does_not_count(small_digits):
    class Twice(nn.Module):
        def step(self, run, closure):
            run.optimizer.zero_grad()
            closure()
            loss = closure()
            run.backward(loss)
            run.optimizer.step()
            return loss.detach()

    term = AreaUnderMargin()
    run = fit(Run(flat, small_digits, terms=[term], stepper=Twice(), settings=Settings(epochs=1, batch_size=50)))
    assert int(term.visits.max()) == 1
    assert int(term.visits.sum()) == 50 * run.total_steps


def test_a_run_that_stops_and_goes_on_has_the_same_areas(small_digits):
    settings = Settings(epochs=3, batch_size=50)
    whole, first, second = AreaUnderMargin(), AreaUnderMargin(), AreaUnderMargin()
    fit(Run(flat, small_digits, terms=[whole], settings=settings))
    begun = fit(Run(flat, small_digits, terms=[first], settings=settings), max_steps=4)
    resumed = Run(flat, small_digits, terms=[second], settings=settings)
    resumed.load_state_dict(begun.state_dict())
    fit(resumed)
    assert second.area.nan_to_num(-9.0).equal(whole.area.nan_to_num(-9.0))


def test_a_term_given_to_a_second_run_or_loaded_again_starts_anew(small_digits):
    settings, term = Settings(epochs=1, batch_size=50), AreaUnderMargin()
    fit(Run(flat, small_digits, terms=[term], settings=settings))
    first = term.area.clone()
    fit(Run(flat, small_digits.select(torch.arange(100)), terms=[term], settings=settings))
    assert len(term.area) == 100
    run = fit(Run(flat, small_digits, terms=[term], settings=settings))
    assert term.area.nan_to_num(-9.0).equal(first.nan_to_num(-9.0))
    term.load_state_dict({name: torch.zeros_like(value) for name, value in term.state_dict().items()})
    run.step -= 1
    fit(run, max_steps=1)
    assert int(term.visits.sum()) == 50


def test_bad_use_is_refused(small_digits):
    with pytest.raises(ValueError, match="from_epoch must be at least 0, got -1"):
        AreaUnderMargin(-1)
    with pytest.raises(SpecError, match="from_epoch=2 is not below the 2 epochs"):
        fit(Run(flat, small_digits, terms=[AreaUnderMargin(2)], settings=Settings(epochs=2)))
    with pytest.raises(Incompatible, match="measures the margin of the one given label"):
        Run(flat, small_digits, terms=[AreaUnderMargin()], transforms=[MixUp()])


RECIPE = Recipe(
    data=DataOptions(train="digits", limit=400, make=("symmetric:rate=0.3",)),
    model="mlp:width=64",
    use=("area-under-margin",),
    settings=Settings(epochs=6, batch_size=50),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    return train(RECIPE, tmp_path_factory.mktemp("runs"))


def test_a_finished_run_keeps_the_areas_and_the_audit_ranks_by_them(finished):
    table = pq.read_table(finished.path / "per_sample.parquet").to_pydict()
    test = [split == "test" for split in table["split"]]
    assert np.isnan(np.array(table["area_under_margin"])[test]).all()
    run = load_run(finished.path)
    area = kept_areas(finished, len(run.splits.train))
    result = audit_run_labels(run, LabelOptions(folds=2, score="area_under_margin"))
    score = result.per_sample["score"]
    assert (np.argsort(score, kind="stable") == np.argsort(area, kind="stable")).all()
    assert ((score >= 0) & (score <= 1)).all()
    assert ((score < 0.5) == (area < 0)).all()
    assert result.summary["average precision"].value > 0.6


def test_runs_without_margins_are_refused(finished, tmp_path):
    plain = train(Recipe(data=RECIPE.data, model=RECIPE.model, settings=Settings(epochs=1)), tmp_path)
    with pytest.raises(Incompatible, match="did not record margins while it trained. Train it with --use area-under"):
        kept_areas(plain, 300)
    with pytest.raises(DataError, match="training rows, the data have 7"):
        kept_areas(finished, 7)
    short = train(
        Recipe(data=RECIPE.data, model=RECIPE.model, use=RECIPE.use, settings=Settings(epochs=1, batch_size=120)),
        tmp_path,
    )
    with pytest.raises(DataError, match="no step saw"):
        kept_areas(short, len(load_run(short.path).splits.train))
    (plain.path / "per_sample.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is damaged or missing"):
        kept_areas(plain, 300)
