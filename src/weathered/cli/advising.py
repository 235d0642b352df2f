"""`weathered advise`: from data, or a run whose labels were audited, to three recipes worth trying first."""

import json
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console

from weathered.advice import advise, command_of, situation_of
from weathered.audit.labels.of_run import LabelOptions
from weathered.cli.auditing import audit_quietly
from weathered.cli.progress import training_progress
from weathered.core.errors import WeatheredError
from weathered.recipe import Recipe
from weathered.store import RunFolder
from weathered.training import train


def advise_on(recipe: Recipe, run: Path | None, out: Path, labels: LabelOptions, as_json: bool) -> None:
    """Print the advice. run: a finished run; without one the recipe is trained into `out` first."""
    if run is None:
        with training_progress() as (observe, watch):
            folder = train(recipe, out, observer=observe, watch=watch)
    else:
        folder = RunFolder(run)
        if folder.state != "done":
            folder.read_json("run.json")
            raise WeatheredError(f"{run} is not finished. Go on with it by 'weathered train ... --resume'.")
    kept = folder.read_json("audit.json")
    if "labels" not in kept:
        kept = audit_quietly(folder.path, labels)
    record = folder.read_json("run.json")
    trained = Recipe.from_tree(record["recipe"], str(folder.path))
    situation = situation_of(kept["labels"])
    found = advise(situation)
    command = command_of(trained, found)
    if as_json:
        tree = {
            "run": str(folder.path),
            "situation": {**asdict(situation), "noise": situation.noise._asdict()},
            "advice": [asdict(item) for item in found],
            "command": command,
        }
        typer.echo(json.dumps(tree, indent=2))
        return
    console = Console(highlight=False)
    noise = situation.noise
    console.print(
        f"{situation.rows} training samples of {situation.num_classes} classes; estimated share of wrong labels "
        f"{noise.value:.3f} [{noise.low:.3f}, {noise.high:.3f}]; largest class over smallest "
        f"{situation.imbalance:.1f}.",
        markup=False,
    )
    for number, item in enumerate(found, 1):
        console.print(f"\n{number}. {'+'.join(item.use)}", style="bold", markup=False)
        console.print(f"   because {item.reason}.", markup=False)
        console.print(f"   ledger: {item.ledger}", markup=False, style="dim")
    console.print("\nThe ledger is of small data with made flaws. What holds on yours, this says:\n", markup=False)
    typer.echo(f"    {command}")
    suspected = kept["labels"]["summary"]["suspected labels"]
    if suspected["value"] > 0:
        typer.echo(
            f"\n{round(suspected['value'] * suspected['n'])} labels are suspected; correcting the worst of them is "
            f"often worth more than any method:\n\n    weathered review {folder.path}"
        )
