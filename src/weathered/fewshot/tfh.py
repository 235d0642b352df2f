"""TFH: a generator learns on base classes to make feature maps from a class prototype, and adds rows to few shots.

Training, on frozen features of base classes; an episode takes N of them and n rows of each:

    p_c = mean of the n maps,    z_1..z_M ~ N(0, I), the same for all classes,    loss = mean (D(z_m, C(p_c)) - p_c)^2

On an episode of new classes p_c is the mean of the K support maps; the generator makes rows from it, which are pooled
like the support and join it for an ordinary classifier. TFH-ft first takes a few Adam steps of the same loss on the
episode's own prototypes, from the stored weights each time.
Limit cases: without generated rows the classifier is the baseline on the support; where rows are copies of p_c the
nearest centroid stays where it was. The loss rewards no use of z, so rows of a class differ little.
Here the maps of base images are those of the images as they are; the source augments images in every episode.
Source: Lazarou et al., Tensor feature hallucination for few-shot learning, WACV 2022, and its code, which is also the
source of the defaults of adapt_steps, adapt_learning_rate, generated, samples, images and ways.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, vmap

from weathered.core.facts import Traits
from weathered.core.rng import derive_seed, generator
from weathered.fewshot.classifiers import (
    Classifier,
    logistic_regression,
    nearest_centroid,
    support_rows,
    support_vectors,
)
from weathered.fewshot.episodes import Fetch, FewShotMethod, pooled
from weathered.fewshot.hallucinator import Activation, Hallucinator, class_prototypes, reconstruction_loss
from weathered.nn.network import seeded

Scale = Literal["mean", "range", "none"]
CLASSIFIERS: dict[str, Classifier] = {
    "logistic": logistic_regression,
    "svm": support_vectors,
    "centroid": nearest_centroid,
}
TOGETHER = 8
"""Episodes adapted or filled at a time; a constant, since it changes the order of sums."""
SAMPLE = 2000
"""Base rows from which the scale is read where features are fetched on demand."""


def evenly_spaced(count: int) -> Int[Tensor, "n"]:
    """At most `SAMPLE` of `count` rows, from which a scale is read."""
    return torch.linspace(0, count - 1, min(SAMPLE, count)).long()


class TFH:
    """Tensor feature hallucination for few-shot classification. Lazarou et al., WACV 2022.

    generated: rows made for each class, >= 0. adapt_steps, adapt_learning_rate: of TFH-ft; 0 steps leave it out.
    vector: work on pooled vectors instead of maps, as the source does for comparison.
    output: last activation, relu, softplus, sigmoid or linear; a sigmoid stays below 1, features after ReLU do not.
    scale: inside the generator features are divided so that those of base classes have the mean size 0.5 (mean) or the
    largest entry 1 (range), or not at all (none, as in the source's code).
    classifier: logistic, svm or centroid. balanced: support and generated rows of a class weigh the same together.
    training_episodes, learning_rate, halvings: of Adam, whose rate is halved so many times at equal distances.
    ways, images, samples: base classes, rows of each and noise vectors in a training episode. sample_images: draw the
    number of rows from 1 to `images`, since a prototype of a new class is that of few rows.
    seed: of weights and draws. Raises ValueError for arguments out of range, and for a sigmoid with scale=mean.
    """

    traits = Traits(
        needs={
            "features": "it learns on what the network makes of images before its head",
            "hard_target": "a prototype is the mean of the rows of one class",
        }
    )

    def __init__(
        self,
        generated: int = 100,
        adapt_steps: int = 20,
        adapt_learning_rate: float = 1e-3,
        vector: bool = False,
        output: Activation = "relu",
        scale: Scale = "mean",
        classifier: Literal["logistic", "svm", "centroid"] = "logistic",
        balanced: bool = False,
        training_episodes: int = 4000,
        learning_rate: float = 1e-3,
        halvings: int = 4,
        ways: int = 5,
        images: int = 20,
        sample_images: bool = False,
        samples: int = 10,
        seed: int = 0,
    ):
        for name, count, least in (
            *(("generated", generated, 0), ("adapt_steps", adapt_steps, 0), ("halvings", halvings, 0)),
            *(("training_episodes", training_episodes, 1), ("ways", ways, 2)),
            *(("images", images, 1), ("samples", samples, 1)),
        ):
            if count < least:
                raise ValueError(f"{name} must be at least {least}, got {count}")
        if not learning_rate > 0 or not adapt_learning_rate > 0:
            raise ValueError(
                f"learning_rate and adapt_learning_rate must be > 0, got {learning_rate} and {adapt_learning_rate}"
            )
        if scale not in ("mean", "range", "none") or classifier not in CLASSIFIERS:
            raise ValueError(
                f"scale must be mean, range or none and classifier one of {', '.join(CLASSIFIERS)}, "
                f"got '{scale}' and '{classifier}'"
            )
        if output == "sigmoid" and scale == "mean":
            raise ValueError(
                "a sigmoid stays below 1, but features scaled to the mean 0.5 do not; use scale=range or output=relu"
            )
        # refuses an unknown activation
        Hallucinator((1,), output)
        self.generated, self.samples, self.vector = generated, samples, vector
        self.output: Activation = output
        self.scale: Scale = scale
        self.adapt_steps, self.adapt_learning_rate = adapt_steps, adapt_learning_rate
        self.classifier, self.balanced = CLASSIFIERS[classifier], balanced
        self.training_episodes, self.learning_rate, self.halvings = training_episodes, learning_rate, halvings
        self.ways, self.images, self.sample_images, self.seed = ways, images, sample_images, seed
        self.scale_, self.episode_ = 1.0, 0
        self._trained: tuple[Hallucinator, torch.optim.Adam] | None = None

    @property
    def network_(self) -> Hallucinator:
        """The fitted generator."""
        return self._fitted()[0]

    def check_features(self, features: Tensor) -> None:
        """Raise ValueError unless these (n, c, h, w), or (n, D) for vectors, can be learnt from."""
        if features.ndim not in (2, 4) or not features.is_floating_point():
            raise ValueError(f"features must be floats (n, c, h, w) or (n, D), got {tuple(features.shape)}")
        if not self.vector and (features.ndim == 2 or max(features.shape[2:]) == 1):
            raise ValueError(
                f"features of shape {tuple(features.shape[1:])} are pooled, but TFH makes maps; take them before "
                "pooling, from a convolutional network and larger images, or set vector=true"
            )
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features must be finite, got NaN or infinity")
        if self.output != "linear" and bool((features < 0).any()):
            raise ValueError(
                f"features go down to {float(features.min()):.3g}, but an output of {self.output} is never negative; "
                "use output=linear, or a network whose last maps pass a ReLU"
            )

    def fit(self, features: Tensor | Fetch, labels: Int[Tensor, "n"]) -> Self:
        """Forget everything and train on base classes; arguments and errors as in `partial_fit`."""
        self._trained, self.episode_ = None, 0
        return self.partial_fit(features, labels, self.training_episodes)

    def partial_fit(self, features: Tensor | Fetch, labels: Int[Tensor, "n"], episodes: int) -> Self:
        """Go on for at most so many training episodes of all `training_episodes`. Returns self.

        features: (n, c, h, w), for vectors also (n, D), or a function of row numbers; no gradient enters them.
        labels (n,): integers >= 0. Raises ValueError as in `check_features`, and for fewer classes than `ways`.
        """
        fetch: Fetch = (lambda rows: features[rows]) if isinstance(features, Tensor) else features
        counts = labels.bincount()
        present = counts.nonzero()[:, 0]
        if len(present) < self.ways:
            raise ValueError(
                f"training episodes take ways={self.ways} base classes, but there are {len(present)}; lower ways"
            )
        if isinstance(features, Tensor) and len(features) != len(labels):
            raise ValueError(f"expected a label for each of {len(features)} rows, got {len(labels)}")
        order, first = labels.argsort(stable=True), counts.cumsum(0) - counts
        if self._trained is None:
            self._start(features if isinstance(features, Tensor) else fetch(evenly_spaced(len(labels))))
        network, optimizer = self._fitted()
        for _ in range(min(episodes, self.training_episodes - self.episode_)):
            rng = generator(self.seed, "tfh episode", self.episode_)
            drawn = present[torch.randperm(len(present), generator=rng)[: self.ways]].tolist()
            number = int(torch.randint(1, self.images + 1, (), generator=rng)) if self.sample_images else self.images
            ranks = [torch.randperm(int(counts[label]), generator=rng)[:number] for label in drawn]
            rows = [order[int(first[label]) + rank] for label, rank in zip(drawn, ranks, strict=True)]
            maps = self._inside(fetch(torch.cat(rows)).detach())
            prototypes = torch.stack([part.mean(0) for part in maps.split([len(part) for part in rows])])
            noise = torch.randn(self.samples, network.code, generator=rng).to(prototypes)
            optimizer.param_groups[0]["lr"] = self._rate()
            optimizer.zero_grad()
            with torch.enable_grad():
                reconstruction_loss(network(prototypes, noise), prototypes).backward()
            optimizer.step()
            self.episode_ += 1
        return self

    @torch.no_grad()
    def hallucinate(
        self, prototypes: Float[Tensor, "N *F"], samples: int, rng: torch.Generator
    ) -> tuple[Float[Tensor, "NM *F"], Int[Tensor, "NM"]]:
        """`samples` rows of each class, the first class's first, and their labels; one draw of noise for all classes.

        prototypes: as the features that were fitted. rng: on the CPU. Raises ValueError before the first fit, for
        samples < 0 or for prototypes that do not fit the network.
        """
        network = self.network_
        if samples < 0:
            raise ValueError(f"samples must be at least 0, got {samples}")
        inside = self._inside(prototypes)
        noise = torch.randn(samples, network.code, generator=rng).to(inside)
        labels = torch.arange(len(prototypes)).repeat_interleave(samples)
        return network(inside, noise).flatten(0, 1) / self.scale_, labels

    def methods(self) -> dict[str, FewShotMethod]:
        """The few-shot methods by name: `tfh`, and `tfh-ft` where adapt_steps > 0; with vectors they say so."""
        kind = " (vectors)" if self.vector else ""
        found: dict[str, FewShotMethod] = {f"tfh{kind}": partial(self.classify, adapt=False)}
        return {**found, f"tfh-ft{kind}": partial(self.classify, adapt=True)} if self.adapt_steps else found

    def classify(
        self,
        support: Float[Tensor, "E N K *F"],
        queries: Float[Tensor, "E B D"],
        numbers: Sequence[int],
        adapt: bool = False,
    ) -> Int[Tensor, "E B"]:
        """Labels 0..N-1 of pooled queries, from a classifier of support and generated rows.

        numbers: one for each episode, which key its noise. adapt: TFH-ft; the stored weights stay as they are.
        Raises ValueError before the first fit, or where support and queries do not fit.
        """
        rows, labels = support_rows(support)
        if not self.generated:
            return self.classifier(rows, labels, queries, None)
        ways, shots = support.shape[1:3]
        prototypes = class_prototypes(self._inside(support.flatten(0, 2)).unflatten(0, support.shape[:3]))
        made = [
            self._rows_of(part, numbers[start : start + TOGETHER], adapt)
            for start, part in zip(range(0, len(numbers), TOGETHER), prototypes.split(TOGETHER), strict=True)
        ]
        labels = torch.cat([labels, torch.arange(ways).repeat_interleave(self.generated)])
        return self.classifier(torch.cat([rows, torch.cat(made)], 1), labels, queries, self._weights(ways, shots))

    def adapted(self, prototypes: Float[Tensor, "E N *F"], numbers: Sequence[int]) -> dict[str, Tensor]:
        """Weights of the network after `adapt_steps` on each episode's prototypes alone, stacked over episodes.

        prototypes: in the scale of the network. The episodes share no gradient, and the stored weights stay.
        """
        network = self.network_
        weights = {name: value.detach() for name, value in network.named_parameters()}
        copies = {
            name: value.expand(len(numbers), *value.shape).clone().requires_grad_() for name, value in weights.items()
        }
        optimizer = torch.optim.Adam(list(copies.values()), self.adapt_learning_rate)
        rngs = [generator(self.seed, "tfh adapt", number) for number in numbers]
        losses = vmap(lambda own, p, z: reconstruction_loss(functional_call(network, own, (p, z)), p))
        with torch.enable_grad():
            for _ in range(self.adapt_steps):
                noise = torch.stack([torch.randn(self.samples, network.code, generator=rng) for rng in rngs])
                optimizer.zero_grad()
                losses(copies, prototypes, noise.to(prototypes)).sum().backward()
                optimizer.step()
        return {name: value.detach() for name, value in copies.items()}

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, scale and how many training episodes are done; empty before the first fit."""
        if self._trained is None:
            return {}
        network, optimizer = self._trained
        return {
            "shape": list(network.shape),
            "network": {name: value.clone() for name, value in network.state_dict().items()},
            "optimizer": copy.deepcopy(optimizer.state_dict()),
            "scale": self.scale_,
            "step": self.episode_,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, bit for bit. Raises ValueError if it is of maps and not vectors, or so."""
        self._trained, self.episode_ = None, 0
        if not state:
            return
        if self.vector != (len(state["shape"]) == 1):
            raise ValueError(f"the state is of features {tuple(state['shape'])}, but vector={self.vector}")
        network, optimizer = self._build(tuple(state["shape"]))
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.scale_, self.episode_ = state["scale"], state["step"]

    def _build(self, shape: tuple[int, ...]) -> tuple[Hallucinator, torch.optim.Adam]:
        with seeded(derive_seed(self.seed, "tfh weights")):
            network = Hallucinator(shape, self.output)
        self._trained = network, torch.optim.Adam(network.parameters(), self.learning_rate, fused=True)
        return self._trained

    def _start(self, features: Tensor) -> None:
        self.check_features(features)
        features = (pooled(features, 1) if self.vector else features).detach()
        size = {"mean": 2 * float(features.abs().mean()), "range": float(features.max()), "none": 1.0}[self.scale]
        if not size > 0:
            raise ValueError("features that are all zero, or never positive for scale=range, cannot be scaled")
        self._build(tuple(features.shape[1:]))
        self.scale_ = 1 / size

    def _fitted(self) -> tuple[Hallucinator, torch.optim.Adam]:
        if self._trained is None:
            raise ValueError("this TFH has seen no base classes yet; call fit first")
        return self._trained

    def _inside(self, features: Tensor) -> Tensor:
        """Features as the network takes them: pooled for vectors, in its scale."""
        self.check_features(features)
        features = pooled(features, 1) if self.vector else features
        shape = self.network_.shape
        if features.shape[1:] != shape:
            raise ValueError(
                f"features must have the shape {shape} of the base classes, got {tuple(features.shape[1:])}"
            )
        return features.float() * self.scale_

    def _rate(self) -> float:
        done = self.episode_ * (self.halvings + 1) // self.training_episodes
        return self.learning_rate * 0.5**done

    @torch.no_grad()
    def _rows_of(self, prototypes: Tensor, numbers: Sequence[int], adapt: bool) -> Float[Tensor, "E NM D"]:
        """Generated rows, pooled, in the scale of the features."""
        network = self.network_
        rngs = [generator(self.seed, "tfh noise", number) for number in numbers]
        noise = torch.stack([torch.randn(self.generated, network.code, generator=rng) for rng in rngs]).to(prototypes)
        if not adapt:
            made = network(prototypes, noise)
        else:
            own = self.adapted(prototypes, numbers)
            made = vmap(lambda weights, p, z: functional_call(network, weights, (p, z)))(own, prototypes, noise)
        return pooled(made, 3).flatten(1, 2) / self.scale_

    def _weights(self, ways: int, shots: int) -> Float[Tensor, "R"] | None:
        """With `balanced`, half of each class's weight on its support; the sum stays the number of rows."""
        if not self.balanced:
            return None
        each = shots + self.generated
        parts = [torch.full((ways * count,), each / (2 * count)) for count in (shots, self.generated)]
        return torch.cat(parts)
