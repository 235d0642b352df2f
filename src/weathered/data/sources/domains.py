"""`domains:N`: generated tables of several domains, where half of the features say less of the label in each; for
trials and tests.

Labels are -1 and 1 alike often. Three stable features are 0.9 label + 1.2 noise in every domain, three spurious ones
strength label + 0.6 noise. Their strength is 1, 0.75 and 0.5 in the three training domains and -0.3 in the domain of
the test set, so that a model which relies on them fails there. Noise is standard normal, of each feature by itself.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.data.sources.columns import with_groups
from weathered.data.sources.options import ReadOptions, refuse_columns

TRAINING = (1.0, 0.75, 0.5)
"""Strength of the spurious features in each training domain."""

TEST = (-0.3,)
FEATURES = 3
MOST = 100_000


def draw_domains(
    size: int, strengths: Sequence[float], rng: torch.Generator
) -> tuple[Float[Tensor, "N 6"], Int[Tensor, "N"], Int[Tensor, "N"]]:
    """(features, labels in {0, 1}, domains) of `size` rows of each domain, one domain for each strength, in order.

    features: three stable ones, then three spurious ones.
    """
    labels = torch.randint(2, (len(strengths) * size,), generator=rng)
    domains = torch.arange(len(strengths)).repeat_interleave(size)
    sign = (2 * labels - 1)[:, None]
    noise = torch.randn(len(labels), 2 * FEATURES, generator=rng)
    stable = 0.9 * sign + 1.2 * noise[:, :FEATURES]
    spurious = torch.tensor(strengths)[domains, None] * sign + 0.6 * noise[:, FEATURES:]
    return torch.cat([stable, spurious], 1), labels, domains


def read_domains(rest: str, options: ReadOptions) -> Dataset:
    """N rows of each domain, 800 without a number, with the domain as their group. The same for the same N.

    Raises DataError unless N is a whole number in [2, 100000].
    """
    if rest and not (rest.isascii() and rest.isdigit() and 2 <= int(rest) <= MOST):
        raise DataError(
            f"'domains' takes a number of rows of each domain in [2, {MOST}], as in domains:800, got '{rest}'."
        )
    refuse_columns("domains", options)
    size, strengths = int(rest) if rest else 800, TEST if options.test else TRAINING
    features, labels, domains = draw_domains(size, strengths, generator(int(options.test), "domains", size))
    dataset = Dataset.of(features, labels, ("negative", "positive"), name="domains")
    return with_groups(dataset, [f"strength {strengths[d]:g}" for d in domains.tolist()], options.group_names)
