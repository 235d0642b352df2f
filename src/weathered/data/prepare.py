"""The data of a recipe: loaded, split, given their flaws, the same for every arm of a comparison."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from weathered.assemble import build, resolve
from weathered.core.errors import DataError, SpecError
from weathered.core.rng import generator
from weathered.data.auxiliary import load_auxiliary, split_spec
from weathered.data.dataset import Dataset
from weathered.data.sources import load_pair, validation_split
from weathered.data.splits import fold_split
from weathered.fewshot.split import few_shot_split
from weathered.recipe import Recipe, parse_fold

MOVING = ("elastic_transform", "glass_blur")
"""Corruptions after which pixels lie elsewhere."""


class Splits(NamedTuple):
    """Training data as the recipe flawed them, what parts may read during training, and the untouched test set.

    aux: auxiliary data by name, without labels. novel: for few-shot methods, the rows of classes that are not
    trained on, in two parts; the other sets then have the base classes alone.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset
    aux: Mapping[str, Dataset] = MappingProxyType({})
    novel: tuple[Dataset, ...] = ()


def prepare(recipe: Recipe) -> Splits:
    """Load the recipe's data and apply its makers to the training set, validation and fold split off afterwards.

    A maker with a method `test_set(dataset, rng)` also says what the test set becomes.

    Raises DataError or SpecError in one sentence for anything that is missing, broken or does not fit.
    """
    recipe.check_protocols()
    options, seed, few_shot = recipe.data, recipe.data_seed, recipe.few_shot
    root = Path(options.root) if options.root else None
    train, test = load_pair(
        options.train,
        options.test,
        label_column=options.label_column,
        test_label_column=options.test_label_column,
        clean_column=options.clean_column,
        skip_bad=options.skip_bad,
        root=root,
        image_size=options.image_size,
        limit=options.limit,
        seed=seed,
        not_features=options.not_features,
        group_column=options.group_column,
        caption_column=options.caption_column,
        mask_column=options.mask_column,
        ignore_label=options.ignore_label,
        rows=options.rows,
        test_rows=options.test_rows,
    )
    novel: tuple[Dataset, ...] = ()
    if few_shot is not None:
        train, test, novel = few_shot_split(train, test, options.episode_options, seed, few_shot.slug)
    seen: Counter[str] = Counter()
    for use in resolve(options.make):
        if use.entry.slot != "maker":
            raise SpecError(f"{use.slug} is a {use.entry.slot}, not a data maker.")
        if few_shot is not None and use.slug == "corrections":
            raise SpecError(
                f"corrections name rows and classes of all data, of which {few_shot.slug} trains on some. Correct the "
                "labels in the data themselves, or train without it."
            )
        if train.is_segmentation and use.options.get("kind") in MOVING:
            raise SpecError(f"{use.options['kind']} moves pixels, but masks stay where they are; take another kind.")
        if train.is_segmentation and use.slug != "corruption":
            raise SpecError(f"{use.slug} changes one label for each sample, but these data have one for each pixel.")
        seen[use.slug] += 1
        maker = build(use)
        if few_shot is not None and hasattr(maker, "test_set"):
            raise SpecError(f"{use.slug} changes the test set, which {few_shot.slug} takes episodes from. Drop one.")
        train = maker(train, generator(seed, "maker", use.slug, seen[use.slug]))
        if hasattr(maker, "test_set"):
            test = maker.test_set(test, generator(seed, "maker", use.slug, seen[use.slug], "test"))
    if test.is_segmentation and not bool(test.class_counts.any()):
        raise DataError(f"{test.name}: no pixel of the test masks has a class; 255 marks those without one.")
    counts = train.class_counts
    if int((counts > 0).sum()) < 2 and not train.is_captioned:
        raise DataError(
            f"{train.name}: training needs at least two classes with samples, found {int((counts > 0).sum())}."
        )
    validation = None
    if few_shot is None and options.base_classes is not None and not 2 <= options.base_classes < train.num_classes:
        raise SpecError(f"base_classes must be in [2, {train.num_classes - 1}], got {options.base_classes}.")
    if options.validation:
        train, validation = validation_split(train, options.validation, seed)
    if options.fold is not None:
        train, test = fold_split(train, *parse_fold(options.fold), seed)
    aux = {
        name: load_auxiliary(source, train, seed, root=root, skip_bad=options.skip_bad)
        for name, source in map(split_spec, options.aux)
    }
    return Splits(train, validation, test, aux, novel)
