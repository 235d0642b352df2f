"""`weathered show NAME --preview`: a picture of what a transform does to a few images and their targets."""

from pathlib import Path

import torch

from weathered.assemble import build_parts, resolve
from weathered.core.atomic import write_atomically
from weathered.core.batch import Batch
from weathered.core.errors import DataError, SpecError
from weathered.core.facts import check
from weathered.core.procedure import Procedure
from weathered.core.rng import generator
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.data.sources import load

IMAGES = 16
COLUMNS = 4
NAMED = 3
"""Classes of a mixture that are named."""
WIDTH = 24
"""Characters that stand beside those of the next picture on one line."""


def preview(spec: str, data: str, path: Path, seed: int = 0) -> Path:
    """Write a grid of changed images with their targets as a PNG file, and return its path.

    spec: a transform with options. data: images, as for training. The same seed gives the same picture.
    Raises SpecError for a path that is no PNG file, for a method that is no transform or that changes captions too,
    Incompatible if it does not fit the data, DataError for data without images or labels of images.
    """
    if path.suffix.lower() != ".png" or path.is_dir():
        name = path.stem or spec.partition(":")[0]
        raise SpecError(f"--preview {path} is no PNG file to write; name one, as in {name}.png.")
    uses = resolve([spec])
    if other := next((use for use in uses if use.entry.slot != "transform"), None):
        raise SpecError(f"{other.slug} is a {other.entry.slot}; only transforms change images and have a preview.")
    dataset = load(data)
    if not dataset.is_image or dataset.is_segmentation:
        raise DataError(f"{data}: a preview needs images with one label each.")
    parts = build_parts(uses, dataset).slots["transforms"]
    for use, part in zip(uses, parts, strict=True):
        if "caption" in part.traits.needs:
            raise SpecError(f"{use.slug} changes captions with their images, which a preview does not show.")
    check(set(dataset.facts), [("transform", part) for part in parts], Procedure())
    rows = torch.randperm(len(dataset), generator=generator(seed, "preview"))[:IMAGES].sort().values
    batch = Batch(dataset.floats(rows), Target.hard(dataset.labels[rows]), rows)
    for use, part in zip(uses, parts, strict=True):
        batch = part(batch, generator(seed, "preview", use.slug))
    write_atomically(path, lambda part: _draw(batch, dataset, spec, part))
    return path


def caption(probabilities: torch.Tensor, names: tuple[str, ...]) -> str:
    """The classes of a target (C,) with their shares in per cent, largest first."""
    shares, classes = probabilities.sort(descending=True, stable=True)
    shown = [(names[int(c)], float(s)) for s, c in zip(shares, classes, strict=True) if s > 0][:NAMED]
    return ", ".join(name if share > 0.999 else f"{name} {share:.0%}" for name, share in shown)


def _draw(batch: Batch, dataset: Dataset, title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    lines = -(-len(batch) // COLUMNS)
    figure = Figure(figsize=(2 * COLUMNS, 2.2 * lines + 0.4), layout="constrained")
    figure.suptitle(title)
    target = batch.target.dense(dataset.num_classes)
    for number, image in enumerate(batch.x.clamp(0, 1)):
        axes = figure.add_subplot(lines, COLUMNS, number + 1)
        axes.imshow(image.permute(1, 2, 0).numpy().squeeze(), cmap="gray", vmin=0, vmax=1)
        title = caption(target[number], dataset.class_names)
        axes.set_title(title if len(title) <= WIDTH else title.replace(", ", ",\n"), fontsize=8)
        axes.set_axis_off()
    figure.savefig(path, format="png", dpi=120)
