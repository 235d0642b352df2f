"""Centre collapse in a run: draws that no other notices, resuming, recipes, and a network that stays as it is."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.augment.crop_flip import CropFlip
from weathered.core.batch import Batch
from weathered.core.errors import Incompatible
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.roles import Output
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.loaded_run import load_run
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model
from weathered.recipe import DataOptions, Recipe
from weathered.terms.center_collapse import (
    CenterCollapse,
    center_collapse,
    class_centres,
)
from weathered.training import train


def maps(seed=0, images=3, dimension=6, size=5, classes=4, ignored=True):
    """Feature maps and label maps of one size; a few pixels without a class."""
    rng = generator(seed, "maps")
    features = torch.randn(images, dimension, size, size, generator=rng, dtype=torch.float64)
    labels = torch.randint(classes, (images, size, size), generator=rng)
    if ignored:
        labels[torch.rand(labels.shape, generator=rng) < 0.2] = 255
    return features, labels


SETTINGS = Settings(epochs=2, batch_size=40, lr=0.05)


def make(data, *terms, model="cnn_small:width=8", **changes):
    return Run(build_model(model, data), data, terms=terms, settings=SETTINGS, **changes)


def weights(run):
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def test_a_weight_of_zero_is_training_without_it_bit_for_bit(small_digits):
    plain, none = weights(fit(make(small_digits))), weights(fit(make(small_digits, CenterCollapse(10, weight=0))))
    assert all(plain[name].equal(none[name]) for name in plain)


def test_its_draws_change_no_other_and_the_network_keeps_its_form(small_digits):
    """With a weight too small to move anything, dropout and order are those of plain training."""

    def trained(*terms):
        model = build_model("mlp:width=16", small_digits)
        model.body.layers.append(nn.Dropout(0.3))
        return weights(fit(Run(model, small_digits, terms=terms, transforms=[CropFlip()], settings=SETTINGS)))

    plain, watched = trained(), trained(CenterCollapse(10, weight=1e-30, projector=True))
    assert list(plain) == list(watched)
    assert all(plain[name].equal(watched[name]) for name in plain)


@pytest.mark.parametrize("faithful", [False, True])
def test_a_run_that_stops_and_goes_on_is_the_same(small_digits, faithful):
    whole, first, second = (CenterCollapse(10, prior=faithful, projector=faithful) for _ in range(3))
    expected = weights(fit(make(small_digits, whole), max_steps=4))
    begun = fit(make(small_digits, first), max_steps=2)
    resumed = make(small_digits, second)
    resumed.load_state_dict(begun.state_dict())
    found = weights(fit(resumed, max_steps=2))
    assert all(expected[name].equal(found[name]) for name in expected)
    state = second.state_dict()
    assert state.keys() == whole.state_dict().keys()
    assert all(value.equal(state[name]) for name, value in whole.state_dict().items())


def test_the_frame_follows_the_seed_and_not_the_order_of_use(small_digits):
    term, other = CenterCollapse(10), CenterCollapse(10)
    fit(make(small_digits, term), max_steps=1)
    first = term.frame
    fit(make(small_digits, term), max_steps=1)
    assert torch.equal(term.frame, first)
    run = Run(build_model("cnn_small:width=8", small_digits), small_digits, terms=[other], settings=Settings(seed=1))
    fit(run, max_steps=1)
    assert not torch.equal(other.frame, first)


def test_the_term_is_the_function_also_on_maps(small_digits):
    run, term = make(small_digits), CenterCollapse(4, weight=0.3)
    features, labels = maps()
    target = Target.hard(labels[labels != 255])
    batch = Batch(features, target, torch.arange(3), {"mask": labels.to(torch.uint8)})
    found = term(run, batch, Output(torch.zeros(3, 4), features))
    assert_close(found, 0.3 * center_collapse(features, labels, term.frame.double()), atol=1e-6, rtol=1e-6)


def test_the_prior_of_a_run_is_the_log_of_the_shares_of_its_images(small_digits):
    rows = torch.arange(200) >= torch.where(small_digits.labels == 3, 150, 0)
    data, term = small_digits.select(rows), CenterCollapse(10, prior=True)
    fit(make(data, term), max_steps=1)
    assert_close(term.log_prior, (data.class_counts / len(data)).log(), atol=1e-6, rtol=0)


def test_it_moves_class_means_apart(small_digits):
    def largest_cosine(run):
        with torch.no_grad():
            x = small_digits.floats(torch.arange(len(small_digits)))
            model = run.model.eval()
            features = model.forward_head(model.forward_features(x), pre_logits=True)
        means, _ = class_centres(features, small_digits.labels)
        unit = F.normalize(means - means.mean(0), dim=1)
        return float((unit @ unit.T - 2 * torch.eye(10)).max())

    plain, pulled = (
        fit(Run(build_model("cnn_small:width=8", small_digits), small_digits, terms=terms, settings=Settings(epochs=8)))
        for terms in ([], [CenterCollapse(10, weight=1.0)])
    )
    assert largest_cosine(pulled) < largest_cosine(plain)


def test_wrong_company_is_refused(small_digits):
    with pytest.raises(Incompatible, match="takes a mean over the samples of each one label"):
        make(small_digits, CenterCollapse(10), transforms=[MixUp()])
    with pytest.raises(ValueError, match="needs as many features or more, got 8"):
        fit(make(small_digits, CenterCollapse(10), model="mlp:width=8"), max_steps=1)


def test_a_recipe_leaves_a_network_without_a_trace(tmp_path):
    recipe = Recipe(
        data=DataOptions(train="digits", limit=300),
        model="mlp:width=32",
        use=("center-collapse:weight=0.2,prior=true",),
        settings=Settings(epochs=2, batch_size=50),
    )
    loaded = load_run(train(recipe, tmp_path).path)
    bare = build_model("mlp:width=32", loaded.splits.train)
    bare.load_state_dict(loaded.model.state_dict())
    x = loaded.splits.test.floats(torch.arange(len(loaded.splits.test)))
    with torch.no_grad():
        assert_close(loaded.predict(loaded.splits.test), bare.eval()(x), atol=0, rtol=0)
