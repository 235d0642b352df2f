"""Randomized smoothing: radii in which a noise-averaged classifier provably keeps its decision, and abstention.

The smoothed classifier is g(x) = argmax_c p_c with p_c = P(f(x + e) = c), e ~ N(0, sigma^2 I). If p_c >= q > 1/2 then g
is constant within the L2 distance sigma Phi^-1(q). CERTIFY picks c by n0 votes and bounds p_c from below by
Clopper and Pearson, q = Beta^-1(alpha; k, n - k + 1), from k votes out of n fresh ones; it abstains if q < 1/2.
PREDICT compares the two largest counts by an exact two-sided binomial test.
Each certificate fails with probability at most alpha over the noise; a batch of N is expected to hold up to alpha N.
Limit cases: k = n gives q = alpha^(1/n), the largest radius there is; a linear f has the distance to its plane as its
exact radius.
Source: Cohen et al., Certified Adversarial Robustness via Randomized Smoothing, ICML 2019, theorem 1 and the
algorithms PREDICT and CERTIFY; average certified radius: Zhai et al., MACER, ICLR 2020.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy import special, stats
from torch import Tensor, nn

from weathered.core.predict import eval_mode
from weathered.core.rng import derive_seed
from weathered.stats import Estimate, proportion_interval, sample_mean_interval

ABSTAIN = -1

DRAW = 2**16
"""Numbers drawn from an image's stream in one call; fixed, because a split draw would give other numbers."""


def clopper_pearson_lower(k: Int[Tensor, "..."] | int, n: int, alpha: float) -> Float[Tensor, "..."]:
    """One-sided lower confidence bound of a probability after k successes in n draws, at level 1 - alpha.

    k: integers in [0, n], any shape. Returns float64 of the same shape, 0 where k = 0.
    Raises ValueError if k, n or alpha are out of range. Source: Clopper and Pearson, Biometrika 1934.
    """
    _check_level(n, alpha)
    k = torch.as_tensor(k)
    if k.is_floating_point() or bool(((k < 0) | (k > n)).any()):
        raise ValueError(f"k must be integers in [0, {n}], got {k.dtype} from {k.min()} to {k.max()}")
    counts = k.cpu().numpy()
    bound = torch.as_tensor(stats.beta.ppf(alpha, counts, n - counts + 1), dtype=torch.float64)
    return torch.where(k.cpu() > 0, bound, 0.0).to(k.device)


def certified_radius(k: Int[Tensor, "..."] | int, n: int, sigma: float, alpha: float) -> Float[Tensor, "..."]:
    """L2 radius sigma Phi^-1(lower bound) after k of n votes, float64 >= 0; 0 where the bound is at most 1/2.

    k: integers in [0, n]. sigma > 0, in units of the input. A bound below 1/2 is no certificate: abstain there.
    """
    _check_sigma(sigma)
    bound = clopper_pearson_lower(k, n, alpha).clamp_min(0.5)
    return torch.as_tensor(sigma * special.ndtri(bound.cpu().numpy()), dtype=torch.float64).to(bound.device)


def radius_ceiling(n: int, sigma: float, alpha: float) -> float:
    """The largest radius that n draws can certify, sigma Phi^-1(alpha^(1/n)), when all of them agree.

    Raises ValueError if n draws cannot certify anything, that is alpha^(1/n) <= 1/2.
    """
    _check_level(n, alpha)
    _check_sigma(sigma)
    if alpha ** (1 / n) <= 0.5:
        need = math.floor(math.log(alpha) / math.log(0.5)) + 1
        raise ValueError(f"n = {n} draws cannot certify anything at alpha = {alpha}; use n >= {need}")
    return float(sigma * special.ndtri(alpha ** (1 / n)))


@dataclass(frozen=True)
class CertifyResult:
    """Decisions and radii of B images.

    labels (B,) int64: class, or -1 where it abstained. radii (B,) float64: L2 radius in [0, 1] units of the input, 0
    where it abstained. counts (B,) int64: votes of the selected class out of n, -1 where counting stopped early.
    alpha: probability, per image, that a radius is too large. sigma: standard deviation of the noise.
    """

    labels: Int[Tensor, "B"]
    radii: Float[Tensor, "B"]
    counts: Int[Tensor, "B"]
    n: int
    alpha: float
    sigma: float


class RandomizedSmoothing:
    """Predict and certify with a noise-averaged classifier. Cohen et al., ICML 2019.

    sigma > 0: standard deviation of the noise, as in training, in units of inputs in [0, 1]. n0: draws that select
    the class; n: fresh draws that certify it. alpha in (0, 1): failure probability per image. batch_size: noisy
    copies in one forward pass, of as many images as fit. early_stop: give up counting once an image has so many votes
    against its class that it must abstain; labels and radii are exactly those of the full count.
    """

    def __init__(
        self,
        sigma: float,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        batch_size: int = 1000,
        early_stop: bool = False,
    ):
        if n0 < 1 or batch_size < 1:
            raise ValueError(f"n0 and batch_size must be >= 1, got {n0} and {batch_size}")
        self.radius_ceiling = radius_ceiling(n, sigma, alpha)
        self.sigma, self.n0, self.n, self.alpha = sigma, n0, n, alpha
        self.batch_size, self.early_stop = batch_size, early_stop

    def predict(
        self, model: nn.Module, x: Tensor, rng: torch.Generator, index: Int[Tensor, "B"] | None = None
    ) -> Int[Tensor, "B"]:
        """The smoothed class of each image from n draws, (B,) int64, -1 = abstain; wrong with probability <= alpha.

        Arguments and errors as in `certify`; also ValueError if n is too small for the test ever to accept.
        """
        if 2 * 0.5**self.n > self.alpha:
            raise ValueError(f"n = {self.n} draws can never be decisive at alpha = {self.alpha}; use more draws")
        numbers, seed = _prepare(x, rng, index)
        with torch.no_grad(), eval_mode(model):
            votes = self._votes(model, x, numbers, seed, "prediction", self.n)
        first, second = torch.cat([votes, torch.zeros_like(votes)], 1).topk(2, dim=1).values.T.cpu().numpy()
        # at probability 1/2 the binomial is symmetric, so the two-sided p-value is twice the upper tail
        p_value = torch.as_tensor(2 * stats.binom.sf(first - 1, first + second, 0.5), dtype=torch.float64).to(x.device)
        return torch.where(p_value > self.alpha, ABSTAIN, votes.argmax(1))

    def certify(
        self, model: nn.Module, x: Tensor, rng: torch.Generator, index: Int[Tensor, "B"] | None = None
    ) -> CertifyResult:
        """Decide, and certify a radius for, each image.

        model: x -> logits (B, C); normalisation lives inside it. It runs in evaluation mode and gets its modes back.
        x: (B, ...) floats in [0, 1]; noise is added to it and not clipped. rng: one number is drawn from it. index
        (B,): distinct numbers of the images, their positions if None. The noise of an image depends on that number
        and rng alone, not on the other images nor on batch_size.
        Raises ValueError if x leaves [0, 1], index does not fit, or logits are NaN or not (B, C).
        """
        numbers, seed = _prepare(x, rng, index)
        with torch.no_grad(), eval_mode(model):
            selected = self._votes(model, x, numbers, seed, "selection", self.n0).argmax(1)
            counts = self._estimate(model, x, numbers, seed, selected)
        # an image that was given up has missed votes, which can only lower its bound, below 1/2 as it is
        abstain = clopper_pearson_lower(counts, self.n, self.alpha) < 0.5
        labels = torch.where(abstain, ABSTAIN, selected)
        radii = certified_radius(counts, self.n, self.sigma, self.alpha)
        if self.early_stop:
            counts = torch.where(abstain, -1, counts)
        return CertifyResult(labels, radii, counts, self.n, self.alpha, self.sigma)

    def _votes(self, model: nn.Module, x: Tensor, numbers: list[int], seed: int, stage: str, draws: int) -> Tensor:
        """Votes (B, C) of `draws` noisy copies of each image."""
        votes = None
        nothing = torch.zeros(len(x), dtype=torch.bool)
        for owner, copies in self._copies(x, numbers, seed, stage, draws, nothing):
            logits = _logits(model, copies)
            classes = logits.shape[1]
            votes = owner.new_zeros(len(x), classes) if votes is None else votes
            cast = owner * classes + logits.argmax(1)
            votes += torch.bincount(cast, minlength=votes.numel()).view_as(votes)
        return torch.zeros(len(x), 1, dtype=torch.int64, device=x.device) if votes is None else votes

    def _estimate(
        self, model: nn.Module, x: Tensor, numbers: list[int], seed: int, selected: Int[Tensor, "B"]
    ) -> Int[Tensor, "B"]:
        """Votes (B,) for the selected class out of n fresh copies; fewer where it stopped early."""
        votes = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        against = torch.zeros_like(votes)
        given_up = torch.zeros(len(x), dtype=torch.bool)
        allowed = self.n - _least_votes(self.n, self.alpha)
        for owner, copies in self._copies(x, numbers, seed, "estimation", self.n, given_up):
            agrees = _logits(model, copies).argmax(1) == selected[owner]
            votes += torch.bincount(owner[agrees], minlength=len(x))
            if self.early_stop:
                against += torch.bincount(owner[~agrees], minlength=len(x))
                given_up.copy_(against > allowed)
        return votes

    def _copies(
        self, x: Tensor, numbers: list[int], seed: int, stage: str, draws: int, given_up: Tensor
    ) -> Iterator[tuple[Int[Tensor, "M"], Tensor]]:
        """Noisy copies of all images with the positions of their images, `batch_size` rows at a time.

        Each image has a stream of its own per stage. The caller may set given_up[i] between two batches, after which
        no more copies of image i are drawn.
        """
        block = min(draws, max(1, DRAW // max(1, x[:1].numel())))
        rows, owners, waiting = [], [], 0
        for i, number in enumerate(numbers):
            stream = torch.Generator(x.device).manual_seed(derive_seed(seed, stage, number))
            for done in range(0, draws, block):
                if given_up[i]:
                    break
                noise = torch.randn(block, *x.shape[1:], generator=stream, dtype=x.dtype, device=x.device)
                rows.append(noise[: draws - done].mul_(self.sigma).add_(x[i]))
                owners.append(torch.full((len(rows[-1]),), i, device=x.device))
                waiting += len(rows[-1])
                if waiting >= self.batch_size:
                    full = waiting - waiting % self.batch_size
                    joined, owner = torch.cat(rows), torch.cat(owners)
                    yield from zip(
                        owner[:full].split(self.batch_size), joined[:full].split(self.batch_size), strict=True
                    )
                    rows, owners, waiting = [joined[full:]], [owner[full:]], waiting - full
        if waiting:
            yield torch.cat(owners), torch.cat(rows)


def certified_accuracy(result: CertifyResult, labels: Int[Tensor, "B"], radii: Sequence[float]) -> tuple[Estimate, ...]:
    """For each radius r >= 0 the share of images whose decision is right and certified to at least r.

    labels (B,): true classes >= 0; abstention is wrong. Each share has a 95 % interval over images (Wilson); that a
    certificate itself fails with probability up to `result.alpha` comes on top.
    """
    if any(not r >= 0 for r in radii):
        raise ValueError(f"radii must be >= 0, got {list(radii)}")
    right = _right(result, labels)
    return tuple(proportion_interval(int((right & (result.radii >= r)).sum()), len(right)) for r in radii)


def average_certified_radius(result: CertifyResult, labels: Int[Tensor, "B"]) -> Estimate:
    """Mean over images of the radius where the decision is right and 0 elsewhere, with a 95 % interval over images.

    The interval is the normal one, cut to what a radius can be. Source: Zhai et al., MACER, ICLR 2020.
    """
    estimate = sample_mean_interval((_right(result, labels) * result.radii).cpu().numpy())
    ceiling = radius_ceiling(result.n, result.sigma, result.alpha)
    return estimate._replace(low=max(0.0, estimate.low), high=min(ceiling, estimate.high))


def _right(result: CertifyResult, labels: Tensor) -> Tensor:
    if labels.shape != result.labels.shape or (len(labels) and int(labels.min()) < 0):
        raise ValueError(
            f"labels must be {len(result.labels)} classes >= 0, got shape {tuple(labels.shape)} "
            f"and {labels.min() if len(labels) else 'nothing'} as the least"
        )
    return result.labels == labels.to(result.labels.device)


def _least_votes(n: int, alpha: float) -> int:
    """The least k whose lower bound reaches 1/2, found by bisection, as the bound grows with k."""
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        if float(clopper_pearson_lower(middle, n, alpha)) >= 0.5:
            high = middle
        else:
            low = middle
    return high


def _logits(model: nn.Module, copies: Tensor) -> Tensor:
    logits = model(copies)
    if logits.ndim != 2 or len(logits) != len(copies):
        raise ValueError(f"the model must return logits ({len(copies)}, C), got shape {tuple(logits.shape)}")
    if bool(logits.isnan().any()):
        raise ValueError("the model returned NaN logits on noisy inputs, which are no vote; check its weights")
    return logits


def _prepare(x: Tensor, rng: torch.Generator, index: Tensor | None) -> tuple[list[int], int]:
    """The images' numbers, and the seed of their streams."""
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"x must be floats (B, ...), got shape {tuple(x.shape)} of {x.dtype}")
    outside = ~((x >= 0) & (x <= 1))
    if bool(outside.any()):
        row = int(outside.flatten(1).any(1).nonzero()[0])
        raise ValueError(
            f"x must lie in [0, 1], image {row} does not; a radius holds in these units, so put normalisation "
            "inside the model"
        )
    numbers = list(range(len(x))) if index is None else [int(number) for number in index]
    if len(numbers) != len(x) or len(set(numbers)) != len(numbers):
        raise ValueError(f"index must hold {len(x)} distinct numbers, got {numbers[:10]}")
    return numbers, int(torch.randint(2**62, (), generator=rng, device=rng.device))


def _check_level(n: int, alpha: float) -> None:
    if n < 1 or not 0 < alpha < 1:
        raise ValueError(f"expected n >= 1 and alpha in (0, 1), got {n} and {alpha}")


def _check_sigma(sigma: float) -> None:
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma must be > 0 and finite, got {sigma}")
