"""Forward correction: its formula, what its minimiser is, which matrices it takes, and runs with one from a file."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.assemble import build, resolve
from weathered.core.errors import CheckpointError, SpecError
from weathered.core.fit import fit
from weathered.core.objective import losses_of
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.losses.cross_entropy import cross_entropy
from weathered.losses.forward_correction import ForwardCorrection, check_transition, forward_correction
from weathered.nn.build import build_model

LABELS = torch.arange(24) % 4
FLIP = torch.tensor(
    [[0.7, 0.3, 0, 0], [0, 1, 0, 0], [0, 0.1, 0.9, 0], [0.25, 0.25, 0, 0.5]], dtype=torch.float64
)  # fmt: skip


def logits(seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 3 * torch.randn(24, 4, generator=generator(seed, "logits"), dtype=dtype)


def symmetric(rate: float, classes: int = 4) -> torch.Tensor:
    matrix = torch.full((classes, classes), rate / (classes - 1), dtype=torch.float64)
    return matrix.fill_diagonal_(1 - rate)


def test_is_cross_entropy_of_the_prediction_after_the_noise():
    expected = -(logits().softmax(1) @ FLIP).gather(1, LABELS[:, None])[:, 0].log()
    assert_close(ForwardCorrection(FLIP)(logits(), LABELS), expected)
    assert_close(forward_correction(logits(), LABELS, FLIP.log()), expected)
    turned = -(logits().softmax(1) @ FLIP.T).gather(1, LABELS[:, None])[:, 0].log()
    assert (expected - turned).abs().max() > 0.1


@given(st.floats(0, 0.7), st.integers(0, 50))
def test_noise_rate_is_the_symmetric_matrix(rate, seed):
    z = logits(seed)
    expected = ForwardCorrection(symmetric(rate))(z, LABELS)
    assert_close(ForwardCorrection(noise_rate=rate)(z, LABELS), expected)
    assert_close(ForwardCorrection(symmetric(rate).tolist())(z, LABELS), expected)


def test_no_noise_is_cross_entropy():
    plain = cross_entropy(logits(), LABELS)
    assert_close(ForwardCorrection(torch.eye(4))(logits(), LABELS), plain)
    assert_close(ForwardCorrection(noise_rate=0.0)(logits(), LABELS), plain)


@pytest.mark.parametrize("part", [ForwardCorrection(FLIP), ForwardCorrection(noise_rate=0.3)], ids=["matrix", "rate"])
def test_gradient_moves_the_prediction_to_its_posterior_given_the_label(part):
    z = logits().requires_grad_()
    (gradient,) = torch.autograd.grad(part(z, LABELS).sum(), z)
    matrix = symmetric(0.3) if part.transition is None else FLIP
    p = z.detach().softmax(1)
    posterior = p * matrix[:, LABELS].T
    assert_close(gradient, p - posterior / posterior.sum(1, keepdim=True))
    assert torch.autograd.gradcheck(lambda x: part(x, LABELS), (logits().requires_grad_(),))


@pytest.mark.parametrize("part", [ForwardCorrection(FLIP), ForwardCorrection(noise_rate=0.3)], ids=["matrix", "rate"])
def test_minimiser_on_noisy_labels_is_the_clean_posterior(part):
    matrix = symmetric(0.3) if part.transition is None else FLIP
    clean = torch.tensor([[0.6, 0.2, 0.15, 0.05]], dtype=torch.float64)
    noisy = clean @ matrix
    z = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [z], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = (noisy[0] * part(z.expand(4, 4), torch.arange(4))).sum()
        loss.backward()
        return loss

    solver.step(closure)
    assert_close(z.detach().softmax(1), clean, rtol=0, atol=1e-6)


def test_the_loss_of_a_wrong_label_is_bounded_where_noise_can_explain_it():
    z = torch.tensor([[1e4, 0.0, 0.0, 0.0]], requires_grad=True)
    for part in (ForwardCorrection(symmetric(0.3)), ForwardCorrection(noise_rate=0.3)):
        assert_close(part(z.detach(), torch.tensor([1])), torch.tensor([-math.log(0.1)]))
    impossible = ForwardCorrection(FLIP)(z, torch.tensor([3]))
    assert_close(impossible.detach(), torch.tensor([1e4 - math.log(0.5)]))
    assert torch.isfinite(torch.autograd.grad(impossible.sum(), z)[0]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_types_may_change_from_call_to_call(dtype):
    part = ForwardCorrection(FLIP)
    exact = part(logits(), LABELS)
    assert_close(part(logits().to(dtype), LABELS).double(), exact, rtol=0.05, atol=0.05)
    assert torch.equal(part(logits(), LABELS), exact)


def test_mixtures_are_summed_over_labels():
    part, z = ForwardCorrection(FLIP), logits()
    target = Target.hard(LABELS).mix(torch.arange(24).roll(1), torch.tensor(0.3))
    expected = 0.3 * part(z, LABELS) + 0.7 * part(z, LABELS.roll(1))
    assert_close(losses_of(part, z, target), expected, rtol=1e-6, atol=1e-6)
    assert part(z[:0], LABELS[:0]).shape == (0,)


def test_rounded_rows_are_scaled_and_whole_numbers_are_taken():
    assert_close(check_transition([[0.333, 0.666], [0, 1]]).sum(1), torch.ones(2).double())
    assert torch.equal(check_transition(torch.eye(3).long()), torch.eye(3).double())


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.ones(2, 3) / 3, r"must be \(C, C\) with C >= 2, got shape \(2, 3\)"),
        (0.4, r"must be \(C, C\)"),
        (torch.ones(1, 1), r"must be \(C, C\)"),
        ([[1.2, -0.2], [0, 1]], "must be >= 0, got -0.2 in row 0, column 1"),
        ([[0.5, 0.5], [math.nan, 1]], "got nan in row 1, column 0"),
        ([[0.5, 0.4], [0, 1]], "row 0 sums to 0.9"),
        ([[0.5, 0.0], [0.5, 1]], "row 0 sums to 0.5; its columns do: transpose it"),
        ([[1, 0], [1, 0]], "never leads to label 1"),
        ([[0.5, 0.5], [0.5, 0.5]], "has no inverse"),
    ],
)
def test_bad_matrices(matrix, message):
    with pytest.raises(ValueError, match=message):
        ForwardCorrection(matrix)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either transition, .* or noise_rate"),
        ({"transition": FLIP, "noise_rate": 0.1}, "give either transition"),
        ({"noise_rate": -0.1}, r"noise_rate must be in \[0, 1\)"),
        ({"noise_rate": math.nan}, "noise_rate must be"),
        ({"noise_rate": 0.75, "num_classes": 4}, r"in \[0, 0.75\), got 0.75: with 4 classes"),
        ({"transition": FLIP, "num_classes": 10}, "transition is 4 by 4, but the data have 10 classes"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ForwardCorrection(**options)


def test_bad_inputs():
    with pytest.raises(ValueError, match=r"logits must be \(B, 4\)"):
        ForwardCorrection(FLIP)(torch.zeros(2, 5), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="with 4 classes"):
        ForwardCorrection(noise_rate=0.8)(logits(), LABELS)
    for part in (ForwardCorrection(FLIP), ForwardCorrection(noise_rate=0.2)):
        for label in (-100, -1, 4):
            with pytest.raises(ValueError, match="labels must be in"):
                part(logits()[:1], torch.tensor([label]))


def test_recipes_name_a_rate_or_a_file(digits: Dataset, tmp_path):
    matrix = symmetric(0.4, 10)
    np.save(tmp_path / "T.npy", matrix.numpy())
    np.savetxt(tmp_path / "T.csv", matrix.numpy(), delimiter=",")
    for options in (f"transition={tmp_path}/T.npy", f"transition={tmp_path}/T.csv"):
        part = build(resolve([f"forward-correction:{options}"])[0], digits)
        assert_close(part.transition, matrix)
    assert build(resolve(["forward-correction:noise_rate=0.4"])[0], digits).noise_rate == 0.4
    for spec, message in (
        ("forward-correction", "forward-correction: give either transition"),
        ("forward-correction:noise_rate=0.9", "with 10 classes the labels would say nothing"),
        ("forward-correction:transition=[[1,0],[0,1]]", "2 by 2, but the data have 10 classes"),
    ):
        with pytest.raises(SpecError, match=message):
            build(resolve([spec])[0], digits)


def make(data: Dataset, loss: ForwardCorrection, pause: float = 1e9) -> Run:
    settings = Settings(epochs=40, batch_size=40, lr=0.1, checkpoint_seconds=pause)
    return Run(lambda seed: build_model("mlp:width=16", data, seed=seed), data, loss=loss, settings=settings)


def test_a_run_predicts_the_clean_labels_and_notices_another_matrix_on_resume(small_digits: Dataset, tmp_path):
    """Every second three is called an eight."""
    threes = (small_digits.labels == 3).nonzero()[:, 0]
    given_labels = small_digits.labels.clone()
    given_labels[threes[::2]] = 8
    noisy = small_digits.replace(labels=given_labels)
    matrix = torch.eye(10, dtype=torch.float64)
    matrix[3, [3, 8]] = 0.5
    fit(make(noisy, ForwardCorrection(matrix), pause=0), folder=tmp_path, recipe_hash="r", max_steps=9)
    with pytest.raises(CheckpointError, match="not the matrix that this run was begun with"):
        fit(make(noisy, ForwardCorrection(torch.eye(10))), folder=tmp_path, recipe_hash="r")
    run = fit(make(noisy, ForwardCorrection(matrix)), folder=tmp_path, recipe_hash="r")
    whole = fit(make(noisy, ForwardCorrection(matrix)))
    assert torch.equal(run.predict(noisy), whole.predict(noisy))
    assert (run.predict(noisy).argmax(1)[threes] == 3).double().mean() > 0.9
    with pytest.raises(ValueError, match="has no state"):
        ForwardCorrection(noise_rate=0.2).load_state_dict({"transition": matrix})
