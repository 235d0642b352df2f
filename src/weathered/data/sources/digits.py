"""`digits`: the 1,797 handwritten digits that come with scikit-learn, 8x8 grey. Alpaydin and Kaynak, UCI, 1998."""

import torch

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset
from weathered.data.labels import LabelCoder
from weathered.data.sources.options import ReadOptions, refuse_columns


def read_digits(rest: str, options: ReadOptions) -> Dataset:
    """All digits as (1, 8, 8) uint8: the original grey levels 0..16 times 255/16, rounded."""
    if rest:
        raise DataError(f"'digits' takes nothing after it, got 'digits:{rest}'.")
    refuse_columns("digits", options)
    from sklearn.datasets import load_digits

    levels, digits = load_digits(return_X_y=True)
    images = (torch.from_numpy(levels) * 255 / 16).round().to(torch.uint8).reshape(-1, 1, 8, 8)
    names = tuple(str(digit) for digit in range(10))
    coded = LabelCoder("digits", names, options.class_names).encode({"label": digits.tolist()})
    return Dataset.of(images, coded.codes["label"], coded.names, name="digits")
