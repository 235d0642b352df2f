"""The inputs of a list of batches, in order: by indexing when in memory, through worker processes when streamed."""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset, Inputs


class _Fetch(TorchDataset):
    """Batches by their positions; an error travels as a value, so that its one sentence survives the process."""

    def __init__(self, inputs: Inputs):
        self.inputs = inputs

    def __getitem__(self, index: Tensor) -> Tensor | DataError:
        try:
            return self.inputs.fetch(index)
        except DataError as error:
            return DataError(str(error))


def iterate(dataset: Dataset, index_batches: Iterable[Int[Tensor, "B"]], workers: int) -> Iterator[Tensor]:
    """The inputs (B, ...) at each batch of positions, in the order given.

    workers: processes that decode streamed inputs ahead; not used for inputs in memory. The result is the same
    for any number of workers. Raises ValueError if workers < 0, DataError if an input cannot be decoded.
    """
    if workers < 0:
        raise ValueError(f"workers must be >= 0, got {workers}")
    inputs = dataset.inputs
    if inputs.in_memory or workers == 0:
        for index in index_batches:
            yield inputs.fetch(index)
        return
    # its own generator: the loader would otherwise draw from the global one and shift the draws of dropout
    loader = DataLoader(
        _Fetch(inputs),
        batch_size=None,
        sampler=index_batches,
        num_workers=workers,
        generator=torch.Generator(),
    )
    for x in loader:
        if isinstance(x, DataError):
            raise x
        yield x
