"""Options that several commands share, and how they become a recipe."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from weathered.recipe import Recipe

Data = Annotated[
    str, typer.Argument(help="A path (folder of class folders, csv, parquet, npz) or a name as in digits.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder that receives the runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@dataclass(frozen=True)
class RecipeOptions:
    """What makes a recipe on the command line. Fields are named as those of Recipe, its data and its settings.

    None, False and an empty list stand for not given.
    """

    recipe: Annotated[Path | None, typer.Option(help="A TOML recipe; options given here win over it.")] = None
    use: Annotated[list[str] | None, typer.Option(help="A method as name:option=value; repeat for more.")] = None
    model: Annotated[
        str | None, typer.Option(help="cnn_small, resnet, mlp, vit, linf-net, chroma-vae, unet, clip-cnn or timm:NAME.")
    ] = None
    head: Annotated[str | None, typer.Option(help="auto, linear or cosine.")] = None
    test: Annotated[str | None, typer.Option(help="Separate test data; without it a quarter is held out.")] = None
    label_column: Annotated[str | None, typer.Option(help="The column to train on.")] = None
    test_label_column: Annotated[
        str | None, typer.Option(help="The test set's label column, if it has another name.")
    ] = None
    clean_column: Annotated[str | None, typer.Option(help="The column with the truth, for scoring only.")] = None
    not_features: Annotated[
        list[str] | None, typer.Option(help="A column of a table that is no feature, such as an id; repeat for more.")
    ] = None
    group_column: Annotated[
        str | None, typer.Option(help="A column with the group of each row, for audits and group losses.")
    ] = None
    caption_column: Annotated[
        str | None, typer.Option(help="A column with the caption of each image, for contrastive training.")
    ] = None
    mask_column: Annotated[
        str | None, typer.Option(help="A column of masks: the class of each pixel, in place of labels.")
    ] = None
    ignore_label: Annotated[int | None, typer.Option(help="The value of pixels without a class, besides 255.")] = None
    rows: Annotated[str | None, typer.Option(help="Only the rows where a column has a value, as in split=train.")] = (
        None
    )
    test_rows: Annotated[str | None, typer.Option(help="The same for the test set, as in split=test.")] = None
    root: Annotated[Path | None, typer.Option(help="Where torchvision data sets lie.")] = None
    noise: Annotated[
        str | None, typer.Option(help="Make wrong labels: symmetric:0.4, asymmetric:0.4, instance:0.4.")
    ] = None
    long_tail: Annotated[str | None, typer.Option(help="Thin classes to this ratio: 50, or 50,kind=step.")] = None
    make: Annotated[list[str] | None, typer.Option(help="Any data maker as name:option=value; repeat for more.")] = None
    labels: Annotated[
        Path | None, typer.Option(help="Corrected labels, as 'weathered review' exports them: a csv or parquet file.")
    ] = None
    aux: Annotated[
        list[str] | None, typer.Option(help="Unlabelled data for methods that use them, as in ood=patches; repeat.")
    ] = None
    limit: Annotated[int | None, typer.Option(help="Use at most this many training samples, drawn at random.")] = None
    validation: Annotated[float | None, typer.Option(help="Share of the training set that methods may read.")] = None
    data_seed: Annotated[
        int | None, typer.Option(help="Seed of splits and makers, if not --seed: the same rows for several runs.")
    ] = None
    fold: Annotated[str | None, typer.Option(help="As in 2/5: this part of the training set becomes the test set.")] = (
        None
    )
    image_size: Annotated[int | None, typer.Option(help="Resize images to this many pixels.")] = None
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out unreadable images and count them.")] = False
    base_classes: Annotated[
        int | None, typer.Option(help="Classes of the first phase, or those that a few-shot method trains on.")
    ] = None
    phases: Annotated[int | None, typer.Option(help="Phases that bring the other classes.")] = None
    ways: Annotated[int | None, typer.Option(help="Novel classes of an episode, for few-shot methods.")] = None
    shots: Annotated[str | None, typer.Option(help="Given samples of each novel class, as in 1,5.")] = None
    queries: Annotated[int | None, typer.Option(help="Samples of each novel class that are asked for.")] = None
    episodes: Annotated[int | None, typer.Option(help="How many episodes are scored.")] = None
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Samples per step.")] = None
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam or adamw.")] = None
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.")] = None
    schedule: Annotated[str | None, typer.Option(help="cosine, step or constant.")] = None
    evaluations: Annotated[int | None, typer.Option(help="How often the test set is scored during training.")] = None
    precision: Annotated[str | None, typer.Option(help="32-true or bf16-mixed.")] = None
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Memory layout for convolutions.")] = False


def takes_recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of `RecipeOptions` as options of its own, in place of its parameter `options`."""
    shared = inspect.signature(RecipeOptions).parameters

    @wraps(command)
    def run(**given: Any) -> None:
        options = RecipeOptions(**{name: given.pop(name) for name in shared})
        command(**given, options=options)

    merged: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        merged |= shared if name == "options" else {name: parameter}
    # typer reads options off the signature
    signature = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in merged.values()])
    cast(Any, run).__signature__ = signature
    run.__annotations__ = {name: parameter.annotation for name, parameter in merged.items()}
    return run


def make_recipe(options: RecipeOptions, data: str | None, seed: int | None = None) -> "Recipe":
    """A recipe from a file, where one is named, and the options that were given."""
    from weathered.core.errors import SpecError
    from weathered.core.settings import Settings
    from weathered.core.spec import render
    from weathered.recipe import DataOptions, Recipe

    recipe = Recipe() if options.recipe is None else Recipe.from_file(options.recipe)
    values = vars(options)
    for name in ("noise", "long_tail"):
        if values[name] is not None and not values[name].strip():
            raise SpecError(f"--{name.replace('_', '-')} is empty; give a value, or leave the option out.")
    if options.fold is not None and options.test is not None:
        raise SpecError("--fold takes the test set from the training data, so --test would do nothing; leave one out.")
    tail = f"long-tail:{options.long_tail}" if options.long_tail else None
    flaws = [with_key(text, key) for text, key in ((tail, "imbalance"), (options.noise, "rate")) if text]
    # last, because people see and correct the labels as the other makers leave them
    corrected = [render("corrections", {"file": str(options.labels)})] if options.labels else []
    given = {
        **values,
        "train": data,
        "seed": options.data_seed,
        "make": [*flaws, *(options.make or []), *corrected],
        "root": options.root and str(options.root),
        "shots": None if options.shots is None else _whole_numbers(options.shots, "--shots"),
    }
    try:
        return replace(
            recipe,
            data=replace(recipe.data, **_named(DataOptions, given)),
            settings=replace(recipe.settings, **_named(Settings, {**values, "seed": seed})),
            **_named(Recipe, values),
        )
    except SpecError:
        raise
    except ValueError as error:
        raise SpecError(f"{error}.") from error


def _named(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that were given and that this dataclass has a field for; lists become tuples."""
    found = {name: values.get(name) for name in (field.name for field in fields(kind))}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in found.items()
        if value is not None and value is not False and value != []
    }


def _whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """`1,5` to (1, 5). Raises SpecError."""
    from weathered.core.errors import SpecError

    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise SpecError(f"{option} takes whole numbers, as in 1,5, got '{text}'.")
    return tuple(map(int, words))


def with_key(text: str, key: str) -> str:
    """`symmetric:0.4` to `symmetric:rate=0.4`: the first value may go without its name."""
    name, colon, rest = text.partition(":")
    first = rest.partition(",")[0]
    return f"{name}:{key}={rest}" if colon and rest and "=" not in first else text
