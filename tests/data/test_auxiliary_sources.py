"""Auxiliary data: synthetic sets of the right shape and law, other sources brought to the shape of the data."""

import numpy as np
import pytest
import torch
from PIL import Image

from weathered.core.errors import DataError, SpecError
from weathered.data.auxiliary import SYNTHETIC, is_synthetic, load_auxiliary, shuffle_pixels, split_spec
from weathered.data.dataset import Dataset
from weathered.data.fingerprint import data_fingerprint
from weathered.data.prepare import prepare
from weathered.recipe import DataOptions, Recipe

COLOUR = Dataset.of(torch.randint(256, (20, 3, 12, 12), dtype=torch.uint8), torch.arange(20) % 2)
TABLE = Dataset.of(torch.randn(50, 4) * torch.tensor([1.0, 2, 3, 4]) + 5, torch.arange(50) % 2)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_images_have_the_shape_of_the_data_and_depend_on_the_seed_alone(name, digits):
    for like in (digits, COLOUR):
        first, again, other = (load_auxiliary(f"{name}:size=40", like, seed) for seed in (0, 0, 1))
        assert first.inputs.shape == like.inputs.shape
        assert first.inputs.dtype == torch.uint8
        rows = torch.arange(40)
        assert torch.equal(first.inputs.fetch(rows), again.inputs.fetch(rows))
        assert not torch.equal(first.inputs.fetch(rows), other.inputs.fetch(rows))


@pytest.mark.parametrize("name", ["gaussian", "shuffled"])
def test_synthetic_tables_keep_the_scale_of_each_column(name):
    x = load_auxiliary(f"{name}:size=4000", TABLE, 0).inputs.fetch(torch.arange(4000))
    given = TABLE.inputs.fetch(torch.arange(50))
    assert x.shape == (4000, 4)
    assert torch.allclose(x.mean(0), given.mean(0), atol=0.4)
    assert torch.allclose(x.std(0), given.std(0), rtol=0.15)


def test_laws_of_the_noise_sets(digits):
    def pixels(name):
        return load_auxiliary(f"{name}:size=2000", digits, 0).inputs.fetch(torch.arange(2000)).float()

    assert set(pixels("rademacher").unique().tolist()) == {0, 255}
    assert abs(float(pixels("rademacher").mean()) - 127.5) < 2
    gaussian = pixels("gaussian")
    # a normal law of deviation 63.75 clipped at two deviations has 0.959 of it left
    assert abs(float(gaussian.std()) / 63.75 - 0.959) < 0.01
    blobs = pixels("blobs")
    assert 0.3 < float((blobs == 0).double().mean()) < 0.9
    assert float((blobs.flatten(1).amax(1) == 255).double().mean()) > 0.9


def test_patches_use_the_full_range(digits):
    x = load_auxiliary("patches:size=300", digits, 0).inputs.fetch(torch.arange(300)).flatten(1)
    assert float((x.amin(1) == 0).double().mean()) > 0.95
    assert float((x.amax(1) == 255).double().mean()) > 0.95
    assert len(x.unique(dim=0)) > 290


def test_shuffled_pixels_keep_each_image_s_values(digits):
    x = digits.inputs.fetch(torch.arange(30))
    shuffled = shuffle_pixels(x, torch.Generator().manual_seed(0))
    assert torch.equal(shuffled.flatten(1).sort(1).values, x.flatten(1).sort(1).values)
    assert not torch.equal(shuffled, x)


def test_folders_are_brought_to_the_size_and_channels_of_the_data(tmp_path, digits):
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    red = np.zeros((30, 40, 3), dtype=np.uint8)
    red[..., 0] = 255
    for number in range(3):
        Image.fromarray(red).save(folder / ("below" if number else ".") / f"{number}.png")
    for like, expected in ((digits, 76), (COLOUR, 255)):
        found = load_auxiliary(f"folder:{folder}", like, 0)
        assert len(found) == len(load_auxiliary(str(folder), like, 0)) == 3
        assert found.inputs.shape == like.inputs.shape
        assert int(found.inputs.fetch(torch.arange(3))[0, 0, 0, 0]) == expected


def test_grey_images_become_colour():
    found = load_auxiliary("digits", COLOUR, 0)
    x = found.inputs.fetch(torch.arange(5))
    assert x.shape == (5, 3, 12, 12)
    assert torch.equal(x[:, 0], x[:, 2])


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("patches:size=0", "one option, size, at least 1"),
        ("patches:sise=9", "one option, size"),
        ("nowhere", "auxiliary data 'nowhere': .*The sources are: patches"),
    ],
)
def test_bad_sources_are_refused(source, sentence, digits):
    with pytest.raises((SpecError, DataError), match=sentence):
        load_auxiliary(source, digits, 0)


def test_kinds_that_do_not_fit_are_refused(digits):
    with pytest.raises(DataError, match="makes images, but data is a table"):
        load_auxiliary("blobs", TABLE, 0)
    with pytest.raises(DataError, match="have inputs of shape"):
        load_auxiliary("digits", TABLE, 0)
    tall = Dataset.of(torch.zeros(4, 1, 500, 10, dtype=torch.uint8), torch.arange(4) % 2)
    with pytest.raises(DataError, match="do not fit into the photographs"):
        load_auxiliary("patches", tall, 0)
    with pytest.raises(DataError, match="brought to squares"):
        load_auxiliary("digits", tall, 0)


def test_specs_are_name_and_source():
    assert split_spec("ood=folder:a=b") == ("ood", "folder:a=b")
    assert is_synthetic("patches:size=3")
    assert not is_synthetic("folder:patches")
    for wrong in ("ood", "=patches", "ood=", "o d=patches"):
        with pytest.raises(SpecError, match="NAME=SOURCE"):
            split_spec(wrong)
    with pytest.raises(SpecError, match="one name twice"):
        DataOptions(aux=("ood=patches", "ood=blobs"))


def test_a_recipe_brings_its_auxiliary_data_and_its_fingerprint_knows_them(tmp_path):
    recipe = Recipe(DataOptions(aux=("ood=patches:size=20",)))
    assert len(prepare(recipe).aux["ood"]) == 20
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.arange(4) % 2)
    with_file = DataOptions(aux=(f"ood=npz:{tmp_path}/a.npz",))
    before = data_fingerprint(with_file)
    assert len({before, data_fingerprint(recipe.data), data_fingerprint(DataOptions())}) == 3
    np.savez(tmp_path / "a.npz", x=np.ones((4, 8, 8), np.uint8), y=np.arange(4) % 2)
    assert data_fingerprint(with_file) != before
