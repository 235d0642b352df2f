"""SmoothMix, the training side: noise training that flattens over-confident directions; see `certify.smoothing`.

Source: Jeong et al., "SmoothMix: Training Confidence-calibrated Smoothed Classifiers for Certified Robustness",
NeurIPS 2021. With m noises e_i ~ N(0, sigma^2), drawn once per step, and p_i(x) = softmax f(x + e_i):
    attack   x' follows the unit gradient of -log mean_i p_i(x')[y] for T steps of length a, kept in [0, 1]
    mixture  x_mix = (1 - lam) x + lam x',  y_mix = (1 - lam) mean_i p_i(x) + lam / C,  lam ~ U(0, 1/2) per sample
    loss     mean_i CE(f(x + e_i), y) + eta w [argmax mean_i p_i(x) = y] mean_i KL(y_mix || p_i(x_mix))
With mix_step > 0 the place of x is taken by x' after that many steps, within the distance w a mix_step of x.
Limits: eta = 0 with mix_step = 0 is noise training (Cohen et al., ICML 2019) with m copies of each input.
w rises linearly from 0 to 1 over the first `warmup` of training; the authors raise it once per epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from weathered.attacks.base import check_unit_range
from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.predict import eval_mode
from weathered.core.procedure import Procedure

if TYPE_CHECKING:
    from weathered.core.run import Run

Classifier = Callable[[Tensor], Float[Tensor, "N C"]]
"""Inputs to logits."""


def noisy_copies(x: Float[Tensor, "B ..."], noise: Float[Tensor, "m B ..."]) -> Float[Tensor, "N ..."]:
    """x + noise[i] for each i, one after another: (m B, ...). Nothing is clipped."""
    return (x + noise).flatten(0, 1)


def mean_probability(logits: Float[Tensor, "N C"], num_noise: int) -> Float[Tensor, "B C"]:
    """The mean softmax over the noisy copies of each input. logits (m B, C) in the order of `noisy_copies`."""
    return logits.softmax(1).unflatten(0, (num_noise, -1)).mean(0)


def project(x: Float[Tensor, "B ..."], centre: Float[Tensor, "B ..."], radius: float) -> Float[Tensor, "B ..."]:
    """The nearest point to each x in the L2 ball of this radius >= 0 around its centre."""
    offset = x - centre
    norm = offset.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (x.ndim - 1))
    return centre + offset * (radius / norm).clamp_max(1.0)


def smooth_attack(
    classifier: Classifier,
    x: Float[Tensor, "B ..."],
    labels: Int[Tensor, "B"],
    noise: Float[Tensor, "m B ..."],
    steps: int,
    step_size: float,
    max_norm: float | None = None,
) -> list[Tensor]:
    """Walk away from the label under the noise-averaged classifier, by unit gradient steps.

    classifier: inputs to logits, in evaluation mode. x: in [0, 1]. noise (m, B, ...): the same at every step.
    step_size: L2 length of a step. max_norm: L2 distance from x that is never exceeded; none without.
    Returns the steps + 1 positions on the way, x first, in [0, 1] and without gradient.
    Source: Jeong et al., NeurIPS 2021; the loss is the logarithm of the mean softmax.
    """
    path = [x.detach()]
    for _ in range(steps):
        position = path[-1].requires_grad_()
        with torch.enable_grad():
            mean = mean_probability(classifier(noisy_copies(position, noise)), len(noise))
            loss = -mean.gather(1, labels[:, None]).clamp_min(1e-20).log().sum()
            (gradient,) = torch.autograd.grad(loss, position)
        position.requires_grad_(False)
        norm = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
        moved = position + step_size * gradient / (norm + 1e-8)
        path.append((moved if max_norm is None else project(moved, x, max_norm)).clamp(0, 1))
    return path


def mixed_target(probability: Float[Tensor, "B C"], lam: Float[Tensor, "B"]) -> Float[Tensor, "B C"]:
    """(1 - lam) * probability + lam / C: what the classifier says, faded towards uniform. lam (B,) in [0, 1]."""
    share = lam[:, None]
    return (1 - share) * probability + share / probability.shape[1]


def mix_divergence(target: Float[Tensor, "B C"], logits: Float[Tensor, "N C"]) -> Float[Tensor, "m B"]:
    """KL(target || softmax) in nats for each noisy copy. logits (m B, C) in the order of `noisy_copies`.

    Returns (m, B), >= 0. Gradients reach the target too. With lam = 0 it is the gap between a mean of softmaxes and
    each of them, which is 0 for one noise.
    """
    log_q = logits.log_softmax(1).unflatten(0, (-1, len(target)))
    # the clamp keeps the gradient finite where a probability underflows to 0
    log_p = target.clamp_min(torch.finfo(target.dtype).tiny).log()
    return (target * (log_p - log_q)).sum(2)


class SmoothMix(Procedure):
    """Train a classifier for randomized smoothing with noise of the same `sigma`.

    sigma > 0: standard deviation of the noise, in units of inputs in [0, 1]. num_noise >= 1: copies of each input, m.
    attack_steps >= 1, step_size > 0: T and a; only their product matters much. The authors use a = 2 sigma and T = 4
    on CIFAR-10; a = 1 and T = 2 to 8 on MNIST. eta >= 0: weight of the mixture. mix_step in [0, attack_steps): 0
    mixes from the input, 1 from its one-step adversary. warmup in [0, 1]: share of training, see the module.
    max_norm > 0: L2 bound on the attack, none by default; bounds were seen to hurt. chunked: cut each batch into m
    parts of nearly equal size and step on each, as the authors do; by default a batch is one step.

    The attack runs in evaluation mode, the losses in training mode. Cross entropy is part of the method, so it calls
    neither loss, reweight nor term. Raises ValueError for inputs outside [0, 1].
    """

    traits = Traits(
        needs={
            "range01": "adds noise and keeps its attack in [0, 1]",
            "hard_target": "attacks each sample's one given label",
        },
        honours=frozenset({"sampler", "transform", "stepper"}),
    )

    def __init__(
        self,
        sigma: float = 0.25,
        num_noise: int = 2,
        attack_steps: int = 4,
        step_size: float = 0.5,
        eta: float = 5.0,
        mix_step: int = 0,
        warmup: float = 0.1,
        max_norm: float | None = None,
        chunked: bool = False,
    ):
        for name, value in (("sigma", sigma), ("step_size", step_size), ("max_norm", max_norm)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be > 0 and finite, got {value}")
        for name, count in (("num_noise", num_noise), ("attack_steps", attack_steps)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if not (eta >= 0 and math.isfinite(eta)):
            raise ValueError(f"eta must be >= 0 and finite, got {eta}")
        if not 0 <= mix_step < attack_steps:
            raise ValueError(f"mix_step must be in [0, {attack_steps}) for {attack_steps} attack steps, got {mix_step}")
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup must be in [0, 1], got {warmup}")
        self.sigma, self.num_noise, self.attack_steps, self.step_size = sigma, num_noise, attack_steps, step_size
        self.eta, self.mix_step, self.warmup, self.max_norm, self.chunked = eta, mix_step, warmup, max_norm, chunked

    def strength(self, progress: float) -> float:
        """The factor w of the mixture at `progress` of training, in [0, 1]."""
        return 1.0 if progress >= self.warmup else progress / self.warmup

    def update(self, run: Run, batch: Batch) -> None:
        if not self.chunked:
            return super().update(run, batch)
        for number, rows in enumerate(torch.arange(len(batch)).tensor_split(min(self.num_noise, len(batch)))):
            part = Batch(batch.x[rows], batch.target.select(rows), batch.index[rows])
            run.take_step(partial(self.chunk_loss, run, part, number))

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        return self.chunk_loss(run, batch, 0)

    def chunk_loss(self, run: Run, batch: Batch, chunk: int) -> Float[Tensor, ""]:
        """The loss of part number `chunk` of a step's batch; each part has noise of its own."""
        x, labels = batch.x, batch.target.single()
        check_unit_range(x, "SmoothMix")
        weight = self.strength(run.progress)
        rng = run.generator(f"smoothmix noise {chunk}", device=x.device)
        noise = self.sigma * torch.randn((self.num_noise, *x.shape), generator=rng, device=x.device)

        def classifier(images: Tensor) -> Tensor:
            return run.forward(images).logits

        path = [x]
        if self.eta > 0 or self.mix_step > 0:
            with eval_mode(run.model):
                path = smooth_attack(classifier, x, labels, noise, self.attack_steps, self.step_size, self.max_norm)
        start = project(path[self.mix_step], x, weight * self.step_size * self.mix_step).clamp(0, 1)

        logits = classifier(noisy_copies(start, noise))
        supervised = F.cross_entropy(logits, labels.repeat(self.num_noise))
        if self.eta == 0:
            return supervised
        probability = mean_probability(logits, self.num_noise)
        right = probability.argmax(1) == labels
        rng = run.generator(f"smoothmix share {chunk}", device=x.device)
        lam = torch.rand(len(x), generator=rng, device=x.device) / 2
        share = lam.view(-1, *[1] * (x.ndim - 1))
        mixed = (1 - share) * start + share * path[-1]
        divergence = mix_divergence(mixed_target(probability, lam), classifier(noisy_copies(mixed, noise)))
        return supervised + self.eta * weight * (right * divergence).mean()
