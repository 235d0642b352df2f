"""The closed form of RISDA: limits, the bound it is, invariances, convexity, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.class_statistics import confusion_graph
from weathered.core.rng import generator
from weathered.procedures.risda import (
    augmented_logits,
    head_classes,
    mean_shift,
    reasoned_covariances,
    risda_loss,
)


class Problem:
    """Features, labels, a classifier, and statistics of K classes of D features, float64."""

    def __init__(self, seed=0, rows=20, classes=5, width=7, spread=1.0):
        rng = generator(seed, "risda")

        def draw(*size):
            return torch.randn(*size, generator=rng, dtype=torch.float64)

        self.features, self.weight, self.bias = draw(rows, width), draw(classes, width), draw(classes)
        self.labels = torch.randint(classes, (rows,), generator=rng)
        mixed = math.sqrt(spread) * draw(classes, width, width)
        self.covariances = mixed @ mixed.transpose(1, 2) / width
        self.means = draw(classes, width)
        self.graph = draw(classes, classes).softmax(1)
        self.shift = mean_shift(self.graph, self.means)

    def loss(self, alpha, beta, weight=None, bias=None, covariances=None, shift=None):
        return risda_loss(
            self.features,
            self.labels,
            self.weight if weight is None else weight,
            self.bias if bias is None else bias,
            self.covariances if covariances is None else covariances,
            self.shift if shift is None else shift,
            alpha,
            beta,
        )

    @property
    def plain(self):
        return F.cross_entropy(F.linear(self.features, self.weight, self.bias), self.labels, reduction="none")


seeds = st.integers(0, 10_000)


@given(seeds, st.floats(0, 3), st.floats(0, 3), st.booleans())
@settings(deadline=None, max_examples=30)
def test_equals_the_sum_written_out(seed, alpha, beta, diagonal):
    p = Problem(seed)
    covariances = p.covariances.diagonal(dim1=1, dim2=2) if diagonal else p.covariances
    logits = F.linear(p.features, p.weight, p.bias)
    found = augmented_logits(logits, p.labels, p.weight, covariances, p.shift, alpha, beta)
    apart = p.weight[None] - p.weight[p.labels][:, None]
    matrices = torch.diag_embed(covariances) if diagonal else covariances
    quadratic = torch.einsum("nkd,nde,nke->nk", apart, matrices[p.labels], apart)
    linear = torch.einsum("nkd,nd->nk", apart, p.shift[p.labels])
    assert_close(found, logits + beta / 2 * quadratic + alpha * linear, atol=1e-9, rtol=1e-9)


def test_without_strength_it_is_cross_entropy():
    p = Problem()
    assert_close(p.loss(0, 0), p.plain, atol=1e-12, rtol=0)


def test_an_identity_graph_is_isda():
    p = Problem()
    identity, nobody = torch.eye(5).double(), torch.zeros(5, dtype=torch.bool)
    assert not mean_shift(identity, p.means).any()
    own = reasoned_covariances(identity, p.covariances, nobody)
    assert_close(own, p.covariances, atol=1e-12, rtol=0)
    borrowed = p.loss(0.7, 0.5, covariances=own, shift=mean_shift(identity, p.means))
    assert_close(borrowed, p.loss(0.0, 0.5), atol=1e-7, rtol=0)


def test_the_shift_goes_from_the_own_mean_to_those_of_the_classes_it_is_taken_for():
    means = torch.tensor([[0.0, 0.0], [4.0, 2.0], [8.0, -6.0]])
    # all of class 0 is taken for 1, class 1 for itself, half of class 2 for 0
    graph = torch.tensor([[0, 1, 0], [0, 1, 0], [0.5, 0, 0.5]], dtype=torch.float64)
    assert mean_shift(graph, means).tolist() == [[4, 2], [0, 0], [-4, 3]]
    p = Problem()
    by_hand = [sum(p.graph[c, j] * p.means[j] for j in range(5)) - p.means[c] for c in range(5)]
    assert_close(p.shift, torch.stack(by_hand))


@given(seeds, st.floats(0, 3), st.floats(0, 3))
@settings(deadline=None, max_examples=30)
def test_the_logit_of_the_label_stays_and_the_others_do_not_fall(seed, alpha, beta):
    p = Problem(seed)
    logits = F.linear(p.features, p.weight, p.bias)
    both = augmented_logits(logits, p.labels, p.weight, p.covariances, p.shift, alpha, beta)
    own = p.labels[:, None]
    assert torch.equal(both.gather(1, own), logits.gather(1, own))
    assert bool((augmented_logits(logits, p.labels, p.weight, p.covariances, p.shift, 0, beta) >= logits).all())
    assert bool((p.loss(0, beta) >= p.plain - 1e-12).all())


def test_single_precision_of_vectors_far_from_the_origin_keeps_the_sign():
    p = Problem()
    far = (p.weight + 1000).float()
    logits = torch.zeros(20, 5)
    found = augmented_logits(logits, p.labels, far, p.covariances.float(), p.shift.float(), 0, 1)
    exact = augmented_logits(logits.double(), p.labels, far.double(), p.covariances, p.shift, 0, 1)
    assert bool((found >= 0).all())
    assert_close(found.double(), exact, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("diagonal", [False, True])
def test_half_precision_is_computed_in_single(dtype, diagonal):
    p = Problem()
    logits, weight, shift = torch.zeros(20, 5, dtype=dtype), (100 * p.weight).to(dtype), p.shift.float()
    covariances = (p.covariances.diagonal(dim1=1, dim2=2) if diagonal else p.covariances).float()
    found = augmented_logits(logits, p.labels, weight, covariances, shift, 0.5, 0.5)
    # the quadratic is beyond the largest number of half precision
    assert float(found.max()) > 66_000
    assert_close(found, augmented_logits(logits.float(), p.labels, weight.float(), covariances, shift, 0.5, 0.5))


@pytest.mark.parametrize(("spread", "tight"), [(0.05, True), (1.0, False)])
def test_bounds_the_mean_loss_of_drawn_features(spread, tight):
    p = Problem(rows=1, classes=4, width=6, spread=spread)
    alpha, beta, label = 0.5, 0.75, int(p.labels)
    rng = generator(0, "draws")
    root = torch.linalg.cholesky(beta * p.covariances[label] + 1e-12 * torch.eye(6))
    drawn = torch.randn(400_000, 6, generator=rng, dtype=torch.float64) @ root.T
    logits = F.linear(p.features + alpha * p.shift[label] + drawn, p.weight, p.bias)
    simulated = float(F.cross_entropy(logits, p.labels.expand(len(logits))))
    bound = float(p.loss(alpha, beta))
    assert simulated < bound
    if tight:
        expectation = (logits - logits[:, [label]]).exp().mean(0).sum().log()
        assert float(expectation) == pytest.approx(bound, rel=0.03)


@given(seeds, st.floats(0, 2), st.floats(0, 2))
@settings(deadline=None, max_examples=30)
def test_only_differences_of_class_vectors_are_augmented(seed, alpha, beta):
    p = Problem(seed)
    together = torch.randn(7, generator=generator(seed, "together"), dtype=torch.float64)
    assert_close(p.loss(alpha, beta, weight=p.weight + together), p.loss(alpha, beta), atol=1e-8, rtol=1e-8)


@given(seeds, st.floats(0, 1), st.floats(0, 2), st.floats(0, 2))
@settings(deadline=None, max_examples=50)
def test_is_convex_in_the_classifier(seed, share, alpha, beta):
    p, q = Problem(seed), Problem(seed + 1)
    between = p.loss(alpha, beta, share * p.weight + (1 - share) * q.weight, share * p.bias + (1 - share) * q.bias)
    ends = share * p.loss(alpha, beta) + (1 - share) * p.loss(alpha, beta, q.weight, q.bias)
    assert bool((between <= ends + 1e-8 * (1 + ends.abs())).all())


@pytest.mark.parametrize("diagonal", [False, True])
def test_gradients_reach_the_classifier_alone(diagonal):
    p = Problem(rows=6, classes=3, width=4)
    covariances = (p.covariances.diagonal(dim1=1, dim2=2) if diagonal else p.covariances).clone().requires_grad_()
    shift = p.shift.clone().requires_grad_()
    weight, bias = p.weight.clone().requires_grad_(), p.bias.clone().requires_grad_()

    def loss(weight, bias):
        return p.loss(0.5, 0.75, weight, bias, covariances, shift)

    assert torch.autograd.gradcheck(loss, (weight, bias))
    loss(weight, bias).sum().backward()
    assert covariances.grad is None
    assert shift.grad is None
    assert bool(weight.grad.abs().sum() > 0)


@given(seeds, st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_heads_keep_their_covariance_and_tails_borrow_a_proper_one(seed, share):
    p = Problem(seed)
    before = p.covariances.clone()
    head = head_classes(torch.tensor([3, 50, 20, 7, 50]), share)
    found = reasoned_covariances(p.graph, p.covariances, head)
    assert torch.equal(p.covariances, before)
    assert torch.equal(found[head], p.covariances[head])
    assert_close(found[~head], torch.einsum("cj,jde->cde", p.graph[~head], p.covariances))
    assert_close(found, found.transpose(1, 2))
    assert bool((torch.linalg.eigvalsh(found) >= -1e-10).all())
    some = torch.tensor([4, 0])
    assert_close(reasoned_covariances(p.graph, p.covariances, head, some), found[some], atol=1e-12, rtol=0)
    variances = reasoned_covariances(p.graph, p.covariances.diagonal(dim1=1, dim2=2), head)
    assert_close(variances, found.diagonal(dim1=1, dim2=2), atol=1e-12, rtol=0)


def test_heads_are_the_largest_classes_in_whatever_order():
    counts = torch.tensor([3, 50, 20, 7, 50])
    assert head_classes(counts, 0.4).tolist() == [False, True, False, False, True]
    assert head_classes(counts, 0.2).tolist() == [False, True, False, False, False]
    assert int(head_classes([100 - k for k in range(100)], 0.2).sum()) == 20
    assert not head_classes(counts, 0).any()
    assert head_classes(counts, 1).all()


def test_a_class_without_covariance_or_rows_is_augmented_by_nothing():
    p = Problem()
    graph = confusion_graph(torch.tensor([0, 1]), torch.tensor([0, 1]), 5)
    nothing = torch.zeros_like(p.covariances)
    assert_close(p.loss(0.5, 0.75, covariances=nothing, shift=mean_shift(graph, p.means)), p.plain)


def test_what_cannot_be_meant_is_refused():
    p = Problem()
    logits = F.linear(p.features, p.weight, p.bias)
    for label in (-1, 5):
        labels = p.labels.clone()
        labels[3] = label
        with pytest.raises(ValueError, match=rf"labels must be in \[0, 4\] .* got {label}"):
            augmented_logits(logits, labels, p.weight, p.covariances, p.shift, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, infinity\), got -1"):
        p.loss(-1, 0.5)
    with pytest.raises(ValueError, match=r"beta must be in \[0, infinity\), got nan"):
        p.loss(0.5, math.nan)
    with pytest.raises(ValueError, match=r"head must be in \[0, 1\], got 20"):
        head_classes([3, 2, 1], 20)
    with pytest.raises(ValueError, match="class 1 has 0"):
        head_classes([3, 0, 1], 0.5)
