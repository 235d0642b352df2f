"""Centre collapse: the simplex, bounds, what centres depend on, and feature maps."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.rng import generator
from weathered.terms.center_collapse import (
    CenterCollapse,
    center_collapse,
    class_centres,
    image_frequency,
    labelled,
    random_projector,
    simplex_etf,
)

seeds = st.integers(0, 10_000)


def frame_of(classes=4, dimension=6, seed=0):
    return simplex_etf(classes, dimension, generator(seed, "frame")).double()


def maps(seed=0, images=3, dimension=6, size=5, classes=4, ignored=True):
    """Feature maps and label maps of one size; a few pixels without a class."""
    rng = generator(seed, "maps")
    features = torch.randn(images, dimension, size, size, generator=rng, dtype=torch.float64)
    labels = torch.randint(classes, (images, size, size), generator=rng)
    if ignored:
        labels[torch.rand(labels.shape, generator=rng) < 0.2] = 255
    return features, labels


@given(st.integers(2, 20), st.integers(0, 15), seeds)
@settings(deadline=None, max_examples=30)
def test_the_frame_is_a_simplex_in_any_orientation(classes, more, seed):
    frame = frame_of(classes, classes + more, seed)
    expected = (classes * torch.eye(classes) - 1).double() / (classes - 1)
    assert_close(frame.T @ frame, expected, atol=1e-6, rtol=0)
    assert_close(frame.sum(1), torch.zeros(classes + more).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("classes", "bound"), [(10, 0.0342), (150, 0.678)])
def test_vertices_reach_the_lower_bound_and_nothing_goes_below(classes, bound):
    frame, labels = frame_of(classes, classes), torch.arange(classes)
    least = math.log1p((classes - 1) * math.exp(-5 * classes / (classes - 1)))
    assert least == pytest.approx(bound, rel=2e-3)
    assert float(center_collapse(3 * frame.T, labels, frame)) == pytest.approx(least, abs=1e-5)
    nudged = frame.T + 0.1 * torch.randn(classes, classes, generator=generator(0, "nudge"), dtype=torch.float64)
    assert float(center_collapse(nudged, labels, frame)) > least + 1e-4


@given(seeds, st.floats(0.1, 20))
@settings(deadline=None, max_examples=30)
def test_never_below_the_bound_and_log_k_where_all_centres_coincide(seed, scale):
    frame, labels = frame_of(), torch.arange(4)
    features = torch.randn(4, 6, generator=generator(seed, "f"), dtype=torch.float64)
    assert float(center_collapse(features, labels, frame, scale)) >= math.log1p(3 * math.exp(-scale * 4 / 3)) - 1e-9
    same = features[:1].expand(4, 6)
    assert float(center_collapse(same, labels, frame, scale)) >= math.log(4) - 1e-9
    across = same - same @ frame @ frame.T * 3 / 4
    assert float(center_collapse(across, labels, frame, scale)) == pytest.approx(math.log(4), abs=1e-5)


@given(seeds, st.integers(0, 3), st.integers(2, 5))
@settings(deadline=None, max_examples=30)
def test_copies_of_the_pixels_of_a_class_change_nothing(seed, label, times):
    frame = frame_of()
    rows, kept = labelled(*maps(seed), 4)
    again = torch.arange(len(kept)).repeat_interleave(torch.where(kept == label, times, 1))
    losses, gradients = [], []
    for place in (torch.arange(len(kept)), again):
        centres, classes = class_centres(rows[place], kept[place])
        centres.requires_grad_()
        losses.append(center_collapse(rows[place], kept[place], frame))
        gradients.append(torch.autograd.grad(center_collapse(centres, classes, frame), centres)[0])
    assert_close(losses[0], losses[1])
    assert_close(gradients[0], gradients[1])


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_the_order_of_images_and_pixels_does_not_matter(seed):
    frame, (features, labels) = frame_of(), maps(seed)
    rng = generator(seed, "order")
    images, pixels = torch.randperm(3, generator=rng), torch.randperm(25, generator=rng)
    moved = features.flatten(2)[images][:, :, pixels].unflatten(2, (5, 5))
    moved_labels = labels.flatten(1)[images][:, pixels].unflatten(1, (5, 5))
    assert_close(center_collapse(moved, moved_labels, frame), center_collapse(features, labels, frame))


@pytest.mark.parametrize("faithful", [False, True])
def test_pixels_without_a_class_have_no_influence_and_no_gradient(faithful):
    projector = random_projector(6, generator(0, "p"), 5, 8) if faithful else None
    frame, (features, labels) = frame_of(dimension=8 if faithful else 6), maps()
    ignored = (labels == 255)[:, None].expand_as(features)
    other = torch.where(ignored, 1e6, features).requires_grad_()
    loss = center_collapse(other, labels, frame, projector=projector)
    assert_close(loss, center_collapse(features, labels, frame, projector=projector))
    loss.backward()
    assert not other.grad[ignored].any()
    assert bool((other.grad[~ignored] != 0).any())


def test_the_pull_on_a_pixel_is_that_on_its_centre_over_the_count():
    frame, (features, labels) = frame_of(), maps()
    features.requires_grad_()
    center_collapse(features, labels, frame).backward()
    rows, kept = labelled(features.detach(), labels, 4)
    centres, classes = class_centres(rows, kept)
    centres.requires_grad_()
    pull = torch.autograd.grad(center_collapse(centres, classes, frame), centres)[0]
    found, _ = labelled(features.grad, labels, 4)
    assert_close(found, pull[kept] / kept.bincount()[kept, None])


def test_absent_classes_give_no_term():
    frame, (features, _) = frame_of(), maps()
    one = torch.full((3, 5, 5), 2)
    centre = F.normalize(features.mean((0, 2, 3)), dim=0)
    expected = F.cross_entropy((5 * centre @ frame)[None], torch.tensor([2]))
    assert_close(center_collapse(features, one, frame), expected)


def test_without_any_class_the_loss_is_zero_and_can_be_differentiated():
    for size in (1.0, 1e38):
        features = (size * maps()[0].abs().float()).requires_grad_()
        loss = center_collapse(features, torch.full((3, 5, 5), 255), frame_of())
        loss.backward()
        assert float(loss.detach()) == 0
        assert torch.equal(features.grad, torch.zeros_like(features))


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_only_the_orientation_against_the_features_counts(seed):
    frame, (features, labels) = frame_of(), maps(seed)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator(seed, "turn"), dtype=torch.float64))
    turned = torch.einsum("ed,ndhw->nehw", turn, features)
    assert_close(center_collapse(turned, labels, turn @ frame), center_collapse(features, labels, frame))


def test_gradients_are_those_of_finite_differences():
    frame, (features, labels) = frame_of(), maps(images=1, size=3)
    projector = random_projector(6, generator(0, "p"), 5, 8)
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: center_collapse(x, labels, frame), features)
    wide = frame_of(dimension=8)
    assert torch.autograd.gradcheck(lambda x: center_collapse(x, labels, wide, projector=projector), features)


def test_maps_are_enlarged_or_labels_thinned():
    features, _ = maps()
    labels = torch.zeros(3, 10, 10).long()
    labels[:, 3, 3] = 1
    large = F.interpolate(features, (10, 10), mode="bilinear", align_corners=True)
    rows, kept = labelled(features, labels, 4)
    assert_close(rows, large.permute(0, 2, 3, 1).reshape(300, 6))
    assert int((kept == 1).sum()) == 3
    rows, kept = labelled(features, labels, 4, resize="labels")
    assert_close(rows, features.permute(0, 2, 3, 1).reshape(75, 6))
    assert int((kept == 1).sum()) == 0, "an object of one pixel is lost between"


def test_small_classes_survive_half_precision():
    labels = torch.zeros(1, 400, 400).long()
    labels[0, 0, :3] = 1
    features = torch.ones(1, 2, 400, 400, dtype=torch.float16) * 7
    features[0, :, 0, :3] = 0.5
    centres, _ = class_centres(*labelled(features, labels, 2))
    assert_close(centres, torch.tensor([[7.0, 7.0], [0.5, 0.5]]))


def test_faithful_projector_is_reduce_normalise_mean_expand_cut():
    features, labels = maps(ignored=False)
    projector, frame = random_projector(6, generator(0, "p"), 5, 8), frame_of(dimension=8)
    reduced = F.conv2d(features, projector.reduce.double()[:, :, None, None])
    normal = F.batch_norm(reduced, None, None, training=True)
    centres, classes = class_centres(*labelled(normal, labels, 4))
    expanded = F.linear(centres, projector.expand.double(), projector.bias.double()).relu()
    expected = F.cross_entropy(5 * F.normalize(expanded, dim=1) @ frame, classes)
    assert_close(center_collapse(features, labels, frame, projector=projector), expected, atol=1e-6, rtol=1e-6)
    assert float((F.normalize(expanded, dim=1) @ frame).max()) < 1


def test_the_prior_counts_images_not_pixels():
    labels = torch.tensor([[[0, 0], [0, 1]], [[0, 255], [0, 0]], [[255, 255], [2, 2]]])
    assert_close(image_frequency(labels, 4), torch.tensor([2, 1, 1, 0]).double() / 4)
    assert_close(image_frequency(torch.tensor([0, 0, 0, 1]), 2), torch.tensor([0.75, 0.25]).double())
    frame, (features, y) = frame_of(), maps()
    log_prior = (image_frequency(labels, 4) + 1e-12).log()
    centres, classes = class_centres(*labelled(features, y, 4))
    expected = F.cross_entropy(5 * F.normalize(centres, dim=1) @ frame + log_prior, classes)
    assert_close(center_collapse(features, y, frame, log_prior=log_prior), expected)


def test_bad_input_is_refused():
    frame, (features, labels) = frame_of(), maps()
    for wrong in (-1, 4, 254):
        with pytest.raises(ValueError, match=rf"labels must be in \[0, 3\], or 255 where there is none, got {wrong}"):
            center_collapse(features, labels.where(labels == 255, wrong), frame)
    with pytest.raises(ValueError, match="features must be finite"):
        center_collapse(features.where(torch.rand(3, 6, 5, 5) < 0.5, torch.nan), labels, frame)
    with pytest.raises(ValueError, match="expected features"):
        center_collapse(features, labels[0], frame)
    with pytest.raises(ValueError, match="the simplex has 6 dimensions, the features have 5"):
        center_collapse(features[:, :5], labels, frame)
    projector = random_projector(6, generator(0, "p"), 5, 8)
    with pytest.raises(ValueError, match="the simplex has 6 dimensions, the projector gives 8"):
        center_collapse(features, labels, frame, projector=projector)
    with pytest.raises(ValueError, match="the projector takes 6 features, got 5"):
        center_collapse(features[:, :5], labels, frame_of(dimension=8), projector=projector)
    with pytest.raises(ValueError, match="no image holds any class"):
        image_frequency(torch.full((2, 2, 2), 255), 3)
    with pytest.raises(ValueError, match="needs as many features or more, got 3; use a wider network or projector"):
        simplex_etf(4, 3, generator(0, "x"))
    for classes in (1, 0):
        with pytest.raises(ValueError, match="num_classes must be at least 2"):
            simplex_etf(classes, 3, generator(0, "x"))
        with pytest.raises(ValueError, match="num_classes must be at least 2"):
            CenterCollapse(classes)
    for scale in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="scale must be > 0 and finite"):
            CenterCollapse(4, scale=scale)
    for weight in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="weight must be >= 0 and finite"):
            CenterCollapse(4, weight=weight)
    with pytest.raises(ValueError, match="resize must be 'features' or 'labels', got 'both'"):
        CenterCollapse(4, resize="both")  # pyright: ignore[reportArgumentType]
