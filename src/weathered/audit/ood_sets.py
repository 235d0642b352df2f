"""Synthetic out-of-distribution inputs made from the test data, for when no others are given.

They are the validation outliers of Hendrycks et al. (ICLR 2019, appendix A) that need no further data: noise, images
with shuffled pixels, arithmetic means of two images, inverted images; for tables noise within the range of each
column, and columns shuffled one by one. They are easier than outliers met in practice, and their names say that they
are synthetic.
"""

import torch
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.data.auxiliary import shuffle_pixels
from weathered.data.dataset import Dataset

MOST = 10_000
"""Inputs per synthetic set; more would change no interval that matters."""


def blend_pairs(images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
    """Means of two uint8 images or clips with different labels; rows that find no partner in 20 draws are left out."""
    partner = torch.randint(len(images), (20, len(images)), generator=rng)
    differs = labels[partner] != labels
    chosen = partner.gather(0, differs.long().argmax(0, keepdim=True))[0]
    found = differs.any(0)
    total = images[found].short() + images[chosen[found]].short()
    return (total // 2).to(torch.uint8)


def synthetic_ood_sets(dataset: Dataset, seed: int, most: int = MOST) -> dict[str, Dataset]:
    """Outliers made from a data set: name -> inputs like the data's, at most `most` each, labels all 0.

    seed: of all draws. Raises DataError for fewer than 2 rows.
    """
    if len(dataset) < 2:
        raise DataError(f"{dataset.name}: synthetic outliers need at least 2 rows, got {len(dataset)}.")
    rows = torch.randperm(len(dataset), generator=generator(seed, "ood", "rows"))[:most].sort().values
    x, labels = dataset.inputs.fetch(rows), dataset.labels[rows]
    noise, shuffle, pairs = (generator(seed, "ood", name) for name in ("noise", "shuffle", "pairs"))
    if "table" not in dataset.facts:
        found = {
            "uniform noise (synthetic)": torch.randint(256, x.shape, generator=noise, dtype=torch.uint8),
            "shuffled pixels (synthetic)": shuffle_pixels(x, shuffle),
            f"means of two {dataset.kind} (synthetic)": blend_pairs(x, labels, pairs),
            f"inverted {dataset.kind} (synthetic)": 255 - x,
        }
    else:
        low, high = x.amin(0), x.amax(0)
        order = torch.rand(x.shape, generator=shuffle).argsort(0)
        found = {
            "uniform noise (synthetic)": low + (high - low) * torch.rand(x.shape, generator=noise),
            "shuffled columns (synthetic)": x.gather(0, order) if x.ndim == 2 else x.flatten(1).gather(0, order),
        }
    return {
        name: Dataset.of(inputs, torch.zeros(len(inputs), dtype=torch.long), dataset.class_names, name=name)
        for name, inputs in found.items()
        if len(inputs)
    }
