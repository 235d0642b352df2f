"""Every transform of the table says how it wants to be called, before anything is drawn."""

import pytest
import torch

from weathered.assemble import import_part
from weathered.core.batch import Batch
from weathered.core.roles import BatchTransform
from weathered.core.spec import parameters
from weathered.mixing.mixup import MixUp
from weathered.registry import ENTRIES

TRANSFORMS = [entry for entry in ENTRIES if entry.slot == "transform"]


@pytest.mark.parametrize("entry", TRANSFORMS, ids=lambda entry: entry.slug)
def test_tensors_instead_of_a_batch_and_a_generator_are_one_sentence(entry):
    factory = import_part(entry)
    taken = {"class_counts": [5, 4, 3, 2], "parts": [MixUp()]}
    part = factory(**{name: value for name, value in taken.items() if name in parameters(factory)})
    assert isinstance(part, BatchTransform)
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    before = torch.get_rng_state()
    for arguments in ((x, y), (Batch.of(x, y), y), (x, torch.Generator()), (Batch.of(x, y), None)):
        with pytest.raises(TypeError, match=rf"{entry.class_name} takes a Batch .* call it with Batch.of\(x, y\) and"):
            part(*arguments)
    captioned = Batch.of(x, y).replace(extra={"caption": torch.full((4, 2), 2)})
    assert len(part(captioned, torch.Generator().manual_seed(0))) == 4
    assert torch.equal(torch.get_rng_state(), before)
