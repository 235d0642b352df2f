"""The recipes with the papers' settings: they parse, and their parts fit together on data of their shape."""

from pathlib import Path

import pytest
import torch
from pages import CLAIMED

from weathered.assemble import build, build_parts, resolve
from weathered.core.facts import traits_of
from weathered.core.run import Run
from weathered.data.auxiliary import load_auxiliary, split_spec
from weathered.data.dataset import Dataset
from weathered.data.sources import load
from weathered.nn.build import build_model
from weathered.recipe import Recipe
from weathered.registry import TABLE

SMALL = {
    "unet": "unet:width=4,depth=1", "linf-net": "linf-net:width=16", "clip-cnn": "clip-cnn:width=4",
    "chroma-vae": "chroma-vae:width=16",
}  # fmt: skip
FILES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.fixture(scope="module")
def images() -> Dataset:
    """Forty grey 32x32 images in colour layout, of ten classes."""
    pixels = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    return Dataset.of(pixels.contiguous(), torch.arange(40) % 10)


@pytest.fixture(scope="module")
def pixels() -> Dataset:
    """Four images of 32x32 with a class for each pixel, three classes."""
    masks = torch.arange(4 * 32 * 32).remainder(3).to(torch.uint8).view(4, 32, 32)
    return Dataset.segmentation(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), masks)


def test_each_claim_has_a_recipe_and_each_recipe_a_method():
    named = {path.stem.rpartition("-")[0] for path in FILES}
    assert set(CLAIMED) <= named <= set(TABLE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipes_resolve_and_their_parts_fit_together(path, images, pixels):
    recipe = Recipe.from_file(path)
    images = pixels if recipe.data.mask_column else load("captions:40") if recipe.data.caption_column else images
    images = load("clips:40") if recipe.model.startswith("clip-cnn") else images
    for use in resolve(recipe.data.make):
        assert use.entry.slot == "maker"
        build(use)
    uses = resolve(recipe.use)
    for use in uses:
        build(use, images)
    parts = build_parts(uses, images)
    aux = {name: load_auxiliary("gaussian:size=4", images, 0) for name, _ in map(split_spec, recipe.data.aux)}
    # a small network stands for the recipe's, which would only cost time here
    small = SMALL.get(recipe.model.partition(":")[0], "cnn_small")
    model, held = build_model(small, images, head=parts.head), images if recipe.data.validation else None
    Run(model, images, validation=held, aux=aux, settings=recipe.settings, **parts.slots)
    assert len(recipe.hash) == 12
    # images are augmented before they are mixed, as in every source here
    mixes = [bool(traits_of(part).breaks) for part in parts.slots["transforms"]]
    assert mixes == sorted(mixes)


@pytest.mark.parametrize("spec", sorted({Recipe.from_file(path).model for path in FILES}))
def test_the_models_of_recipes_exist(spec, images, pixels):
    with torch.device("meta") if spec.startswith("timm:") else torch.device("cpu"):
        if spec.startswith("timm:"):
            import timm

            assert timm.is_model(spec.removeprefix("timm:"))
        elif spec.startswith("unet:"):
            # without its weights, which would be downloaded
            build_model(spec.replace("pretrained=true", "pretrained=false"), pixels)
        elif spec.startswith("linf-net:"):
            # with fewer units, which would take half a gigabyte
            build_model(spec.replace("width=5120", "width=512"), images)
        else:
            build_model(spec, load("clips:40") if spec.startswith("clip-cnn") else images)
