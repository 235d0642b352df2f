"""Options that several commands share, and how they become a recipe."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from weathered.recipe import Recipe

Data = Annotated[
    str, typer.Argument(help="A path (folder of class folders, csv, parquet, npz) or a name as in digits.")
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="A TOML recipe; options given here win over it.")]
Test = Annotated[str | None, typer.Option("--test", help="Separate test data; without it a quarter is held out.")]
LabelColumn = Annotated[str | None, typer.Option(help="The column to train on.")]
TestLabelColumn = Annotated[str | None, typer.Option(help="The test set's label column, if it has another name.")]
CleanColumn = Annotated[str | None, typer.Option(help="The column with the truth, for scoring only.")]
Root = Annotated[Path | None, typer.Option(help="Where torchvision data sets lie.")]
Noise = Annotated[str | None, typer.Option(help="Make wrong labels: symmetric:0.4, asymmetric:0.4, instance:0.4.")]
LongTail = Annotated[str | None, typer.Option(help="Thin classes to this ratio: 50, or 50,kind=step.")]
Make = Annotated[list[str] | None, typer.Option("--make", help="Any data maker as name:option=value; repeat for more.")]
Limit = Annotated[int | None, typer.Option(help="Use at most this many training samples, drawn at random.")]
Validation = Annotated[float | None, typer.Option(help="Share of the training set that methods may read.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out unreadable images and count them.")]
ImageSize = Annotated[int | None, typer.Option(help="Resize images to this many pixels.")]
BaseClasses = Annotated[int | None, typer.Option(help="Classes of the first phase, for incremental learners.")]
Phases = Annotated[int | None, typer.Option(help="Phases that bring the other classes.")]
Model = Annotated[str | None, typer.Option(help="cnn_small, mlp or timm:NAME.")]
Head = Annotated[str | None, typer.Option(help="auto, linear or cosine.")]
Use = Annotated[list[str] | None, typer.Option("--use", help="A method as name:option=value; repeat for more.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training set.")]
BatchSize = Annotated[int | None, typer.Option(help="Samples per step.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]
Optimizer = Annotated[str | None, typer.Option(help="sgd, adam or adamw.")]
WeightDecay = Annotated[float | None, typer.Option(help="Weight decay.")]
Schedule = Annotated[str | None, typer.Option(help="cosine, step or constant.")]
Evaluations = Annotated[int | None, typer.Option(help="How often the test set is scored during training.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Precision = Annotated[str | None, typer.Option(help="32-true or bf16-mixed.")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Devices = Annotated[int, typer.Option(min=1, help="Devices that share each batch, on every node.")]
Nodes = Annotated[int, typer.Option(min=1, help="Machines, each started with the same command under torchrun.")]
ChannelsLast = Annotated[bool, typer.Option("--channels-last", help="Memory layout for convolutions.")]
Out = Annotated[Path, typer.Option("--out", help="Folder that receives the runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def make_recipe(
    file: Path | None,
    data: dict[str, Any],
    settings: dict[str, Any],
    model: str | None = None,
    head: str | None = None,
    use: list[str] | None = None,
    noise: str | None = None,
    long_tail: str | None = None,
) -> "Recipe":
    """A recipe from a file and the options that were given; None stands for not given."""
    from weathered.core.errors import SpecError
    from weathered.core.settings import Settings
    from weathered.recipe import Recipe

    recipe = Recipe.from_file(file) if file is not None else Recipe(settings=Settings())
    made = [with_key(text, key) for text, key in ((_tail(long_tail), "imbalance"), (noise, "rate")) if text]
    given = {key: value for key, value in data.items() if value is not None and value is not False}
    made += given.pop("make", [])
    if made:
        given["make"] = tuple(made)
    changed = {key: value for key, value in settings.items() if value is not None and value is not False}
    try:
        return replace(
            recipe,
            data=replace(recipe.data, **given),
            settings=replace(recipe.settings, **changed),
            **({"model": model} if model is not None else {}),
            **({"head": head} if head is not None else {}),
            **({"use": tuple(use)} if use else {}),
        )
    except SpecError:
        raise
    except ValueError as error:
        raise SpecError(f"{error}.") from error


def _tail(text: str | None) -> str | None:
    return f"long-tail:{text}" if text else None


def with_key(text: str, key: str) -> str:
    """`symmetric:0.4` to `symmetric:rate=0.4`: the first value may go without its name."""
    name, colon, rest = text.partition(":")
    first = rest.partition(",")[0]
    return f"{name}:{key}={rest}" if colon and rest and "=" not in first else text
