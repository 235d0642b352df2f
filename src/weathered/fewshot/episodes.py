"""N-way K-shot episodes over novel classes, and the protocol that scores methods on the same ones.

An episode draws N classes, then for each of them K rows as support and Q others as queries; labels are 0..N-1 in the
order drawn. A method sees the support with its labels and predicts the queries. Reported are the mean accuracy over
episodes with Student's t interval, and differences of two methods paired episode by episode. Supports are nested: the
queries, and the first rows of each support, are the same for every K. The interval covers the draw of episodes, given
these classes and this network.
Source: Vinyals et al., Matching Networks, NeurIPS 2016; the mean over 600 episodes: Chen et al., ICLR 2019.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.watch import Progress
from weathered.stats import Comparison, Estimate, mean_interval, paired_comparison

CHUNK = 256
"""Episodes drawn at a time; a whole chunk is drawn each time, so that more episodes keep the first ones."""

Fetch = Callable[[Int[Tensor, "n"]], Tensor]
"""Row numbers (n,) to features (n, D) or feature maps (n, c, h, w)."""

FewShotMethod = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""(support (E, N, K, ...), pooled queries (E, B, D), numbers of the episodes) -> labels (E, B) in 0..N-1."""


def pooled(features: Tensor, leading: int) -> Tensor:
    """Mean over whatever comes after the channels: (*leading, c, h, w) -> (*leading, c); rows (*leading, D) stay."""
    return features.flatten(leading + 1).mean(-1) if features.ndim > leading + 1 else features


@dataclass(frozen=True)
class Episodes:
    """E episodes of N classes as row numbers.

    classes (E, N): their numbers in the data. support (E, N, K), queries (E, N, Q): distinct rows of these classes.
    """

    classes: Int[Tensor, "E N"]
    support: Int[Tensor, "E N K"]
    queries: Int[Tensor, "E N Q"]

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def ways(self) -> int:
        return self.classes.shape[1]

    @property
    def shots(self) -> int:
        return self.support.shape[2]

    @property
    def query_labels(self) -> Int[Tensor, "B"]:
        """The labels 0..N-1 of an episode's queries in their order, the same for each episode."""
        return torch.arange(self.ways).repeat_interleave(self.queries.shape[2])

    def with_shots(self, shots: int) -> "Episodes":
        """The same episodes with the first `shots` rows of each support. Raises ValueError if there are fewer."""
        if not 1 <= shots <= self.shots:
            raise ValueError(f"shots must be in [1, {self.shots}] for these episodes, got {shots}")
        return Episodes(self.classes, self.support[:, :, :shots], self.queries)


def check_sizes(ways: int, shots: int, queries: int, episodes: int) -> None:
    """Raise ValueError unless ways >= 2, shots >= 1, queries >= 1 and episodes >= 2, which an interval needs."""
    for name, value, least in (
        ("ways", ways, 2),
        ("shots", shots, 1),
        ("queries", queries, 1),
        ("episodes", episodes, 2),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


class EpisodeOptions(NamedTuple):
    """What a recipe says of its episodes; base_classes: None for half of the classes."""

    ways: int = 5
    shots: tuple[int, ...] = (1, 5)
    queries: int = 15
    episodes: int = 600
    base_classes: int | None = None

    def check(self) -> None:
        """Raise ValueError unless the numbers are in range and shots are different whole numbers."""
        if not self.shots or not all(isinstance(k, int) and not isinstance(k, bool) for k in self.shots):
            raise ValueError(f"shots must be whole numbers, as in 1,5, got {list(self.shots)}")
        if len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots must be different numbers, got {list(self.shots)}")
        check_sizes(self.ways, min(self.shots), self.queries, self.episodes)


def draw_episodes(
    labels: Int[Tensor, "R"], ways: int, shots: int, queries: int, episodes: int, rng: torch.Generator
) -> Episodes:
    """Draw episodes over the classes of `labels`, (R,) integers >= 0; classes without rows do not count.

    Classes are drawn without replacement within an episode, and so are the rows of a class. More episodes, or more
    shots, keep the ones that fewer would have drawn. Raises ValueError if a size is out of range, there are fewer
    classes than ways, or a class has fewer than shots + queries rows.
    """
    check_sizes(ways, shots, queries, episodes)
    if labels.ndim != 1 or labels.is_floating_point() or (len(labels) and int(labels.min()) < 0):
        raise ValueError(f"labels must be integers >= 0 of shape (R,), got {tuple(labels.shape)} of {labels.dtype}")
    counts = labels.bincount() if len(labels) else labels.new_zeros(0)
    present = counts.nonzero()[:, 0]
    if len(present) < ways:
        raise ValueError(f"{ways}-way episodes need at least {ways} classes, got {len(present)}")
    counts, taken = counts[present], shots + queries
    if int(counts.min()) < taken:
        scarce = int(counts.argmin())
        raise ValueError(
            f"class {int(present[scarce])} has {int(counts[scarce])} rows, but an episode takes {taken} of a class: "
            f"{shots} as support and {queries} as queries"
        )
    order = labels.argsort(stable=True)
    first = counts.cumsum(0) - counts
    outside = torch.arange(int(counts.max())) >= counts[:, None]
    classes, rows = [], []
    for _ in range(0, episodes, CHUNK):
        drawn = torch.rand(CHUNK, len(present), generator=rng).argsort(1)[:, :ways]
        keys = torch.rand(CHUNK, ways, outside.shape[1], generator=rng)
        ranks = keys.masked_fill(outside[drawn], 2.0).argsort(2)[:, :, :taken]
        classes.append(drawn)
        rows.append(order[first[drawn][..., None] + ranks])
    chosen, drawn = torch.cat(rows)[:episodes], torch.cat(classes)[:episodes]
    return Episodes(present[drawn], chosen[:, :, queries:], chosen[:, :, :queries])


@dataclass(frozen=True)
class FewShotResult:
    """Accuracies (E,) in [0, 1] of each method on the same episodes."""

    accuracies: Mapping[str, Float[Tensor, "E"]]

    def estimate(self, method: str) -> Estimate:
        """Mean over episodes with its 95 % t interval."""
        return mean_interval(self.accuracies[method].tolist())

    def difference(self, method: str, baseline: str) -> Comparison:
        """Method - baseline, paired episode by episode."""
        return paired_comparison(self.accuracies[method].tolist(), self.accuracies[baseline].tolist())


def run_episodes(
    methods: Mapping[str, FewShotMethod],
    fetch: Fetch,
    episodes: Episodes,
    batch_size: int = 25,
    watch: Progress | None = None,
) -> FewShotResult:
    """Score every method on every episode, `batch_size` episodes at a time.

    fetch: features or feature maps of rows. Methods get the queries pooled, and a number for each episode that keys
    their draws. watch: told how many episodes are done.
    Raises ValueError if batch_size < 1, or features are not finite, have another number of dimensions
    than 2 or 4, or a method's answer is not of shape (E, B).
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    truth, found = episodes.query_labels, {name: [] for name in methods}
    for numbers in torch.arange(len(episodes)).split(batch_size):
        if watch is not None:
            watch(f"episodes of {episodes.shots} shots", int(numbers[0]), len(episodes))
        support, queries = (_fetched(fetch, rows[numbers]) for rows in (episodes.support, episodes.queries))
        flat = pooled(queries, 3).flatten(1, 2)
        for name, method in methods.items():
            labels = method(support, flat, numbers.tolist())
            if labels.shape != flat.shape[:2]:
                raise ValueError(f"{name} must give labels of shape {tuple(flat.shape[:2])}, got {tuple(labels.shape)}")
            found[name].append((labels.cpu() == truth).double().mean(1))
    return FewShotResult({name: torch.cat(parts) for name, parts in found.items()})


def _fetched(fetch: Fetch, rows: Int[Tensor, "E N K"]) -> Tensor:
    features = fetch(rows.flatten())
    if features.ndim not in (2, 4) or not bool(torch.isfinite(features).all()):
        raise ValueError(f"features must be finite, (n, D) or (n, c, h, w), got {tuple(features.shape)} or NaN")
    return features.unflatten(0, rows.shape)
