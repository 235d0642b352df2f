"""The check refuses what cannot work and says which parts, why, and what to do."""

import functools
import warnings

import pytest
import torch
from torch import nn

from weathered.core.errors import Incompatible, Unused
from weathered.core.facts import SLOTS, Traits, check
from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.roles import Part
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.losses.bayias import Bayias
from weathered.losses.focal import Focal
from weathered.losses.ldam import LDAM
from weathered.losses.logit_adjustment import LogitAdjustment
from weathered.losses.logitclip import LogitClip
from weathered.nn.build import build_model
from weathered.weighting.class_balanced_sampling import ClassBalancedSampling
from weathered.weighting.drw import DRW


class Box(Part):
    traits = Traits(needs={"uniform_pixels": "boxes"}, breaks={"uniform_pixels": "pastes boxes"})

    def __call__(self, batch, rng):
        return batch


class Blend(Part):
    traits = Traits(breaks={"hard_target": "turns labels into mixtures"})

    def __call__(self, batch, rng):
        return batch


class Selective(Procedure):
    traits = Traits(needs={"hard_target": "it selects by one label"}, honours=frozenset({"transform"}))


DATA = {"image", "hard_target", "uniform_pixels"}


def test_a_slot_that_is_not_honoured_is_refused():
    with pytest.raises(Incompatible, match="LogitClip fills the slot 'loss', which Selective never calls"):
        check(DATA, [("loss", LogitClip())], Selective())


def test_a_broken_fact_names_both_parts_and_the_reason():
    with pytest.raises(Incompatible, match="Selective needs 'hard_target'.*but Blend runs earlier and turns labels"):
        check(DATA, [("transform", Blend())], Selective())


def test_the_way_out_is_the_other_order_where_that_helps():
    class Fragile(Part):
        traits = Traits(needs={"hard_target": "one label"})

    with pytest.raises(Incompatible, match="Put Fragile before Blend"):
        check(DATA, [("transform", Blend()), ("transform", Fragile())], Procedure())
    check(DATA, [("transform", Fragile()), ("transform", Blend())], Procedure())


def test_twice_the_same_breaking_part_is_refused_without_a_false_way_out():
    with pytest.raises(Incompatible, match="Drop one of the two"):
        check(DATA, [("transform", Box()), ("transform", Box())], Procedure())


def test_a_fact_that_nobody_provides_comes_with_a_remedy():
    class Margin(Part):
        traits = Traits(needs={"cosine_head": "logits in [-1, 1]"})

    with pytest.raises(Incompatible, match="do not provide it. To provide it, build the model with head=cosine"):
        check(DATA, [("loss", Margin())], Procedure())


def test_unknown_facts_and_slots_cannot_be_declared():
    with pytest.raises(ValueError, match="unknown fact 'imaeg'"):
        Traits(needs={"imaeg": "typo"})
    with pytest.raises(ValueError, match="unknown slot"):
        Traits(honours=frozenset({"losses"}))
    assert set(Procedure.traits.honours) < set(SLOTS)


def test_a_part_that_is_never_called_stops_the_run_after_the_first_step(small_digits):
    class Forgetful(Procedure):
        def loss(self, run, batch):
            return nn.functional.cross_entropy(run.model(batch.x), batch.target.single())

    run = Run(build_model("mlp", small_digits), small_digits, procedure=Forgetful(), loss=LogitClip())
    with pytest.raises(Unused, match="LogitClip was given as 'loss' but Forgetful did not call it"):
        fit(run)


def test_a_table_provides_no_image(wine):
    run = Run(build_model("mlp", wine), wine, settings=Settings(epochs=1))
    assert "table" in run.facts
    assert "image" not in run.facts
    assert {"features", "linear_head"} <= run.facts

    class Picture(Part):
        traits = Traits(needs={"image": "it looks at pixels"})

    with pytest.raises(Incompatible, match="needs 'image'"):
        Run(build_model("mlp", wine), wine, transforms=[Picture()])


def test_two_parts_that_make_up_for_class_sizes_are_warned_of(small_digits):
    counts = small_digits.class_counts
    build = functools.partial(build_model, "mlp", small_digits)
    with pytest.warns(UserWarning, match="ClassBalancedSampling and LogitAdjustment each make up for unequal class"):
        Run(build(), small_digits, loss=LogitAdjustment(counts), sampler=ClassBalancedSampling())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Run(build(head="cosine"), small_digits, loss=LDAM(counts), reweight=DRW(counts))
        Run(build(), small_digits, loss=LogitAdjustment(counts, base=Focal()))
    with pytest.raises(ValueError, match="Bayias makes up for class sizes itself"):
        LogitAdjustment(counts, base=Bayias(counts))


def test_cosine_head_is_a_fact_of_the_model(small_digits):
    run = Run(build_model("cnn_small", small_digits, head="cosine"), small_digits)
    assert "cosine_head" in run.facts
    assert float(run.model(torch.rand(4, 1, 8, 8)).detach().abs().max()) <= 1 + 1e-6
