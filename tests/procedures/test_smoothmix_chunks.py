"""SmoothMix cut into chunks: one step each on its own rows, all noises in every pass, one mixing share per sample."""

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.nn.build import build_model
from weathered.procedures.smoothmix import SmoothMix

LENGTH = 0.2
"""Of a step of the attack, so short that nothing is cut at the ends of [0, 1]."""


@dataclass
class Chunk:
    """What the network saw in one chunk, without the noise of the first pass: (m, n, ...) each."""

    attack: list[torch.Tensor]
    clean: torch.Tensor
    mixed: torch.Tensor


def gray(images: Dataset, rows: int) -> torch.Tensor:
    return images.floats(torch.arange(rows)).clamp(0.3, 0.7)


def watch(images: Dataset, noises: int, rows: int, chunked: bool, attack_steps: int = 2) -> tuple[Batch, list[Chunk]]:
    """One update on the first `rows` images, and the inputs of all passes, chunk by chunk."""
    procedure = SmoothMix(num_noise=noises, attack_steps=attack_steps, step_size=LENGTH, warmup=0.0, chunked=chunked)
    run = Run(build_model("mlp:width=16", images), images, procedure=procedure, settings=Settings(4, 12, lr=0.01))
    batch = Batch.of(gray(images, rows), images.labels[:rows])
    seen: list[torch.Tensor] = []
    steps: list[int] = []
    run.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    run.optimizer.register_step_post_hook(lambda *_: steps.append(len(seen)))
    run.begin_step()
    run.procedure.update(run, batch)
    passes = attack_steps + 2
    assert steps == list(range(passes, len(seen) + 1, passes))
    found, start = [], 0
    for first in range(0, len(seen), passes):
        views = [x.unflatten(0, (noises, -1)) for x in seen[first : first + passes]]
        x = batch.x[start : start + views[0].shape[1]]
        start += len(x)
        noise = views[0] - x
        *attack, clean, mixed = (view - noise for view in views)
        found.append(Chunk(attack, clean, mixed))
    assert start == rows
    return batch, found


@pytest.mark.parametrize(
    ("rows", "noises", "chunked", "sizes"),
    [(12, 2, True, [6, 6]), (12, 5, True, [3, 3, 2, 2, 2]), (2, 3, True, [1, 1]), (12, 3, False, [12])],
)
def test_each_chunk_has_its_rows_and_all_noises_in_every_pass(images, rows, noises, chunked, sizes):
    """No row is left out, also where the noises do not divide the batch; noise is the same in all passes of a chunk."""
    batch, chunks = watch(images, noises, rows, chunked)
    assert [chunk.clean.shape[1] for chunk in chunks] == sizes
    parts = batch.x.split(sizes)
    for chunk, x in zip(chunks, parts, strict=True):
        # taking the noise of the first pass off any other leaves one image for all copies of a sample
        for view in (*chunk.attack, chunk.clean, chunk.mixed):
            assert view.shape[0] == noises
            assert_close(view, view[:1].expand_as(view), atol=1e-5, rtol=0)
        assert_close(chunk.clean, x.expand_as(chunk.clean), atol=1e-5, rtol=0)


def test_every_sample_of_every_chunk_is_mixed_by_a_share_of_its_own(images):
    """The same for all noisy copies of a sample, and for no two samples of a batch."""
    _, chunks = watch(images, noises=3, rows=12, chunked=True, attack_steps=1)
    assert len(chunks) == 3
    lam = torch.cat([(chunk.mixed - chunk.clean).flatten(2).norm(dim=2) / LENGTH for chunk in chunks], 1)
    assert_close(lam, lam[:1].expand_as(lam), atol=1e-4, rtol=0)
    assert ((lam > 0) & (lam < 0.5 + 1e-4)).all()
    assert lam[0].sort().values.diff().min() > 1e-3


def test_shares_are_uniform_between_nothing_and_a_half(images):
    """After an attack of one step the mixed image is the drawn share of the step's length away."""
    procedure = SmoothMix(num_noise=1, attack_steps=1, step_size=LENGTH, warmup=0.0, sigma=0.1)
    run = Run(build_model("mlp:width=16", images), images, procedure=procedure, settings=Settings(4, 12))
    x = gray(images, 48)
    seen: list[torch.Tensor] = []
    run.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    drawn = []
    for step in range(40):
        seen.clear()
        run.step = step
        run.begin_step()
        run.procedure.loss(run, Batch.of(x, images.labels))
        _, clean, mixed = seen
        drawn.append((mixed - clean).flatten(1).norm(dim=1) / LENGTH)
    lam = torch.cat(drawn)
    assert float(lam.min()) >= 0
    assert float(lam.max()) <= 0.5 + 1e-4
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert float(lam.quantile(quantile)) == pytest.approx(quantile / 2, abs=0.02)
