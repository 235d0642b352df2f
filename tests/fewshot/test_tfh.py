"""TFH: what it learns, what it makes, and when it is the baseline."""

import copy

import pytest
import torch
from torch.func import functional_call
from torch.testing import assert_close

from weathered.core.rng import generator
from weathered.fewshot.classifiers import logistic_regression, nearest_centroid, on_support, support_rows
from weathered.fewshot.figures import hallucinator_figures
from weathered.fewshot.hallucinator import reconstruction_loss
from weathered.fewshot.tfh import TFH

SHAPE, CLASSES, EACH = (6, 3, 4), 8, 10


@pytest.fixture(scope="module")
def base():
    """Non-negative maps of eight classes, some entries above 1, and their labels in mixed order."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat(EACH)
    levels = 2 * torch.rand(CLASSES, SHAPE[0], 1, 1, generator=rng)
    maps = (levels + 0.5 * torch.randn(CLASSES, *SHAPE, generator=rng))[labels]
    return (maps + 0.2 * torch.randn(maps.shape, generator=rng)).clamp_min(0), labels


@pytest.fixture(scope="module")
def fitted(base):
    return TFH(training_episodes=150, generated=12, adapt_steps=8).fit(*base)


@pytest.fixture(scope="module")
def episodes():
    rng = torch.Generator().manual_seed(1)
    means = torch.rand(10, 4, *SHAPE, generator=rng) * 2
    support = means[:, :, None] + 0.5 * torch.rand(10, 4, 3, *SHAPE, generator=rng)
    queries = means[:, torch.arange(20) % 4] + torch.rand(10, 20, *SHAPE, generator=rng)
    return support, queries.mean((3, 4)), list(range(10))


@pytest.mark.parametrize("output", ["softplus", "sigmoid"])
def test_five_prototypes_are_overfitted(output):
    """500 steps: below 1 % of the prototypes' variance over classes, the error of their mean."""
    prototypes = torch.rand(5, 40, 3, 3, generator=torch.Generator().manual_seed(0))
    method = TFH(
        training_episodes=500, output=output, scale="none", images=1, learning_rate=3e-3, halvings=2, samples=4
    )
    rows, _ = method.fit(prototypes, torch.arange(5)).hallucinate(prototypes, 10, torch.Generator().manual_seed(0))
    error = reconstruction_loss(rows.unflatten(0, (5, 10)), prototypes)
    assert float(error) < 0.01 * float(prototypes.var(0, correction=0).mean())


@pytest.mark.parametrize("vector", [False, True])
def test_training_lowers_the_error_on_base_classes(base, vector):
    few, many = (TFH(training_episodes=n, learning_rate=5e-3, vector=vector).fit(*base) for n in (1, 300))
    before, after = (hallucinator_figures(method, *base) for method in (few, many))
    assert after.error < min(0.5 * before.error, after.variance)
    assert after.variance == before.variance
    assert 0 < after.spread < before.spread


def test_rows_come_class_by_class_with_their_labels(fitted, base):
    prototypes = base[0][:5]
    rows, labels = fitted.hallucinate(prototypes, 3, torch.Generator().manual_seed(2))
    assert rows.shape == (15, *SHAPE)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    swapped, _ = fitted.hallucinate(prototypes.flip(0), 3, torch.Generator().manual_seed(2))
    assert_close(swapped.unflatten(0, (5, 3)).flip(0).flatten(0, 1), rows, atol=1e-6, rtol=1e-5)
    none, empty = fitted.hallucinate(prototypes, 0, torch.Generator())
    assert len(none) == len(empty) == 0


def test_rows_are_in_the_scale_of_the_features(base):
    """Features ten times as large give rows ten times as large, since the generator sees the same."""
    small = TFH(training_episodes=30).fit(*base)
    large = TFH(training_episodes=30).fit(10 * base[0], base[1])
    one, _ = small.hallucinate(base[0][:3], 4, torch.Generator().manual_seed(0))
    ten, _ = large.hallucinate(10 * base[0][:3], 4, torch.Generator().manual_seed(0))
    assert_close(ten, 10 * one, rtol=1e-3, atol=1e-4)
    assert float(base[0].mean() * small.scale_) == pytest.approx(0.5)
    ranged = TFH(training_episodes=1, scale="range", output="sigmoid").fit(*base)
    assert float(base[0].max() * ranged.scale_) == pytest.approx(1)
    assert TFH(training_episodes=1, scale="none").fit(*base).scale_ == 1


def test_a_sigmoid_cannot_reach_features_above_one(base):
    """The trap of the source's code: with features up to 2 a sigmoid stays at or below 1; the other outputs do not."""
    high = torch.full((2, *SHAPE), 2.0)
    for output, reached in (("sigmoid", False), ("relu", True), ("softplus", True)):
        method = TFH(training_episodes=100, output=output, scale="none", ways=2, images=1, learning_rate=1e-2)
        rows, _ = method.fit(high, torch.arange(2)).hallucinate(high, 4, torch.Generator().manual_seed(0))
        assert (float(rows.mean()) > 1.5) == reached, output
    with pytest.raises(ValueError, match=r"a sigmoid stays below 1, but features scaled to the mean 0.5 do not"):
        TFH(output="sigmoid")


@pytest.mark.parametrize("classifier", ["logistic", "svm", "centroid"])
def test_without_generated_rows_it_is_the_baseline(base, episodes, classifier):
    method = TFH(training_episodes=1, generated=0, classifier=classifier).fit(*base)
    support, queries, numbers = episodes
    for found in method.methods().values():
        assert torch.equal(found(support, queries, numbers), on_support(method.classifier)(support, queries, numbers))


def test_copies_of_the_prototype_leave_the_nearest_centroid_where_it_was(fitted, episodes, monkeypatch):
    support, queries, numbers = episodes
    expected = on_support(nearest_centroid)(support, queries, numbers)

    def copies(prototypes, _):
        return prototypes[..., None, :, :, :].expand(*prototypes.shape[:-3], 12, *SHAPE)

    method = copy.deepcopy(fitted)
    method.classifier = nearest_centroid
    monkeypatch.setattr(method.network_, "forward", copies)
    assert torch.equal(method.classify(support, queries, numbers), expected)


def test_the_classifier_sees_support_and_generated_rows(fitted, episodes):
    """Rebuilt by hand for one episode, with the noise of its number."""
    support, queries, numbers = episodes
    prototypes = support[3].mean(1)
    rows, labels = fitted.hallucinate(prototypes, 12, generator(fitted.seed, "tfh noise", numbers[3]))
    own, own_labels = support_rows(support[3:4])
    together = torch.cat([own, rows.mean((2, 3))[None]], 1)
    expected = logistic_regression(together, torch.cat([own_labels, labels]), queries[3:4])
    assert torch.equal(fitted.classify(support, queries, numbers)[3:4], expected)
    assert torch.equal(fitted.classify(support[3:4], queries[3:4], numbers[3:4]), expected)


def test_weights_are_half_on_support_and_keep_their_sum(base):
    method = TFH(training_episodes=1, generated=12, balanced=True)
    weights = method._weights(4, 3)
    assert weights is not None
    assert float(weights.sum()) == pytest.approx(4 * 15)
    real, made = weights[:12], weights[12:]
    assert float(real.sum()) == pytest.approx(float(made.sum()))
    assert TFH(generated=12)._weights(4, 3) is None


def test_balanced_weights_reach_the_classifier(base, episodes):
    support, queries, numbers = episodes
    seen = []
    for balanced in (False, True):
        method = TFH(training_episodes=20, generated=12, balanced=balanced).fit(*base)
        method.classifier = lambda rows, labels, asked, weights: seen.append(weights) or asked[..., 0].long()
        method.classify(support, queries, numbers)
    assert seen[0] is None
    assert seen[1].shape == (4 * 15,)


def test_fine_tuning_lowers_the_loss_and_leaves_the_stored_weights(fitted, episodes):
    before = {name: value.clone() for name, value in fitted.network_.state_dict().items()}
    prototypes = fitted._inside(episodes[0].flatten(0, 2)).unflatten(0, episodes[0].shape[:3]).mean(2)
    own = fitted.adapted(prototypes, episodes[2])
    noise = torch.randn(50, fitted.network_.code, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for episode, p in enumerate(prototypes):
            tuned = functional_call(fitted.network_, {name: value[episode] for name, value in own.items()}, (p, noise))
            assert float(reconstruction_loss(tuned, p)) < float(reconstruction_loss(fitted.network_(p, noise), p))
    first = fitted.classify(*episodes, adapt=True)
    assert torch.equal(fitted.classify(*episodes, adapt=True), first)
    assert all(torch.equal(value, before[name]) for name, value in fitted.network_.state_dict().items())
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in own.values())


def test_episodes_are_tuned_apart(fitted, episodes):
    """Together or one by one, by torch's own Adam on a copy."""
    prototypes = fitted._inside(episodes[0].flatten(0, 2)).unflatten(0, episodes[0].shape[:3]).mean(2)[:3]
    together = fitted.adapted(prototypes, [4, 5, 6])
    for episode, number in enumerate([4, 5, 6]):
        network = copy.deepcopy(fitted.network_)
        optimizer = torch.optim.Adam(network.parameters(), fitted.adapt_learning_rate)
        rng = generator(fitted.seed, "tfh adapt", number)
        for _ in range(fitted.adapt_steps):
            optimizer.zero_grad()
            noise = torch.randn(fitted.samples, network.code, generator=rng)
            reconstruction_loss(network(prototypes[episode], noise), prototypes[episode]).backward()
            optimizer.step()
        for name, value in network.named_parameters():
            assert_close(together[name][episode], value.detach(), atol=1e-4, rtol=1e-3)


def test_features_get_no_gradient(base):
    maps = base[0].clone().requires_grad_()
    TFH(training_episodes=3).fit(maps, base[1])
    assert maps.grad is None


@pytest.mark.parametrize("cut", [1, 40])
def test_in_pieces_and_from_its_state_it_is_the_same_training(base, cut):
    whole = TFH(training_episodes=60, sample_images=True, seed=3).fit(*base)
    first = TFH(training_episodes=60, sample_images=True, seed=3).partial_fit(*base, cut)
    resumed = TFH(training_episodes=60, sample_images=True, seed=3)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed.partial_fit(*base, 1000)
    assert resumed.episode_ == 60
    for name, value in whole.network_.state_dict().items():
        assert torch.equal(value, resumed.network_.state_dict()[name])
    assert TFH().state_dict() == {}
    with pytest.raises(ValueError, match=r"the state is of features \(6, 3, 4\), but vector=True"):
        TFH(vector=True).load_state_dict(first.state_dict())
    resumed.load_state_dict({})
    with pytest.raises(ValueError, match=r"has seen no base classes yet"):
        _ = resumed.network_


def test_seeds_and_options_change_what_is_learnt(base):
    def weights(**options):
        method = TFH(training_episodes=5, **options).fit(*base)
        return torch.cat([p.flatten() for p in method.network_.parameters()])

    plain = weights()
    assert torch.equal(plain, weights())
    for change in ({"seed": 1}, {"sample_images": True}, {"images": 3}, {"samples": 3}, {"ways": 3}):
        assert not torch.equal(plain, weights(**change)), change


def test_the_rate_is_halved_at_equal_distances():
    method = TFH(training_episodes=50, learning_rate=0.8, halvings=4)
    rates = []
    for method.episode_ in range(50):
        rates.append(method._rate())
    assert rates == [0.8 / 2 ** (episode // 10) for episode in range(50)]


def test_features_may_be_fetched_on_demand(base):
    maps, labels = base
    asked = []
    given = TFH(training_episodes=10).fit(maps, labels)
    fetched = TFH(training_episodes=10).fit(lambda rows: asked.append(len(rows)) or maps[rows], labels)
    assert all(
        torch.equal(a, b) for a, b in zip(given.network_.parameters(), fetched.network_.parameters(), strict=True)
    )
    assert asked == [80, *[50] * 10]


def test_vectors_are_pooled_maps(base, episodes):
    maps, labels = base
    rows = maps.mean((2, 3))
    from_maps = TFH(vector=True, training_episodes=20, generated=5).fit(maps, labels)
    from_rows = TFH(vector=True, training_episodes=20, generated=5).fit(rows, labels)
    for a, b in zip(from_maps.network_.parameters(), from_rows.network_.parameters(), strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert list(from_maps.methods()) == ["tfh (vectors)", "tfh-ft (vectors)"]
    support, queries, numbers = episodes
    answers = from_maps.classify(support, queries, numbers)
    pooled_support = from_maps.classify(support.mean((4, 5)), queries, numbers)
    assert (answers == pooled_support).double().mean() > 0.98


def test_fine_tuning_may_be_left_out():
    assert list(TFH(adapt_steps=0).methods()) == ["tfh"]
    assert list(TFH().methods()) == ["tfh", "tfh-ft"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generated": -1}, "generated must be at least 0, got -1"),
        ({"adapt_steps": -1}, "adapt_steps must be at least 0"),
        ({"training_episodes": 0}, "training_episodes must be at least 1"),
        ({"ways": 1}, "ways must be at least 2"),
        ({"images": 0}, "images must be at least 1"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"halvings": -1}, "halvings must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate and adapt_learning_rate must be > 0, got 0.0 and 0.001"),
        ({"adapt_learning_rate": float("nan")}, "must be > 0"),
        ({"scale": "max"}, "scale must be mean, range or none"),
        ({"classifier": "forest"}, "classifier one of logistic, svm, centroid"),
        ({"output": "tanh"}, "output must be one of"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TFH(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.mean((2, 3)), r"features of shape \(6,\) are pooled, but TFH makes maps"),
        (lambda x: x.mean((2, 3), keepdim=True), r"features of shape \(6, 1, 1\) are pooled"),
        (lambda x: x - 1, r"features go down to -1, but an output of relu is never negative; use output=linear"),
        (lambda x: x * torch.nan, r"features must be finite"),
        (lambda x: x.long(), r"features must be floats"),
        (lambda x: x[:, 0], r"features must be floats \(n, c, h, w\) or \(n, D\)"),
        (lambda x: x[:-1], r"expected a label for each of 79 rows, got 80"),
        (lambda x: x * 0, r"features that are all zero"),
    ],
)
def test_features_that_cannot_be_learnt_from_are_refused(base, change, message):
    with pytest.raises(ValueError, match=message):
        TFH(training_episodes=2).fit(change(base[0]), base[1])


def test_other_misuse_is_one_sentence(base, fitted, episodes):
    few = base[1] < 4
    with pytest.raises(ValueError, match=r"take ways=5 base classes, but there are 4; lower ways"):
        TFH(training_episodes=2).fit(base[0][few], base[1][few])
    with pytest.raises(ValueError, match=r"has seen no base classes yet; call fit first"):
        TFH().classify(*episodes)
    with pytest.raises(ValueError, match=r"features must have the shape \(6, 3, 4\) of the base classes"):
        fitted.hallucinate(torch.rand(2, 6, 5, 5), 2, torch.Generator())
    with pytest.raises(ValueError, match=r"samples must be at least 0, got -1"):
        fitted.hallucinate(base[0][:2], -1, torch.Generator())
    with pytest.raises(ValueError, match=r"figures need at least two base classes, got 1"):
        hallucinator_figures(fitted, base[0][base[1] == 1], base[1][base[1] == 1])
