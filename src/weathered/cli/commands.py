"""The commands that train, compare, audit, report and verify. Each imports what it needs when it is called."""

from pathlib import Path
from typing import Annotated

import typer

from weathered.cli import options as opt

RUNS = Path("runs")


@opt.takes_recipe_options
def train(
    data: Annotated[str | None, typer.Argument(help="Data, unless the recipe names them.")] = None,
    *,
    options: opt.RecipeOptions,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Devices that share each batch, on every node.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines, each started with the same command under torchrun.")] = 1,
    out: opt.Out = RUNS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and the verdict.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Train one recipe and print where the run is."""
    if data is None and options.recipe is None:
        from weathered.core.errors import SpecError

        raise SpecError("nothing to train on: name data, as in 'weathered train digits', or give --recipe FILE.")
    made = opt.make_recipe(options, data, seed)
    from weathered.cli.running import dry, train_one

    if dry_run:
        dry(made, as_json)
    else:
        train_one(made, out, resume, as_json, accelerator, devices, nodes)


@opt.takes_recipe_options
def compare(
    data: opt.Data,
    arms: Annotated[str, typer.Option("--arms", help='As in ce,logitclip,"jocor+logitclip".')],
    with_: Annotated[
        str | None,
        typer.Option("--with", help="More arms, each also together with each of --arms; what does not fit is named."),
    ] = None,
    ablate: Annotated[
        bool,
        typer.Option("--ablate", help="Arms of several parts also run without each part, and with each part alone."),
    ] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds, from 0.")] = 3,
    baseline: Annotated[str | None, typer.Option(help="The arm to compare with.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="What ranks: accuracy by default, mean IoU for masks; any figure of a run.")
    ] = None,
    audits: Annotated[
        str | None, typer.Option(help="Audits made of every run and compared, as in corruption,selective.")
    ] = None,
    audit_limit: Annotated[
        int | None, typer.Option(min=2, help="Audit each run on at most this many test samples.")
    ] = None,
    launcher: Annotated[str, typer.Option(help="local or ray.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of the local pool.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print which arms fit together, and why not.")] = False,
    *,
    options: opt.RecipeOptions,
    out: opt.Out = RUNS,
    report: Annotated[Path | None, typer.Option("--report", help="Where to write the report.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Train several arms over seeds on the same data, rank them and write a report."""
    made = opt.make_recipe(options, data)
    from weathered.cli.comparing import arms_of, audits_of, compare_arms, dry_compare

    wanted = audits_of(audits, audit_limit)
    named, crossing = arms_of(arms, with_, ablate), with_ is not None or ablate
    if dry_run:
        dry_compare(made, named, seeds, crossing, as_json, baseline, metric, wanted)
        return
    compare_arms(
        made, named, seeds, out, report, as_json,
        baseline=baseline, metric=metric, crossing=crossing, audits=wanted, audit_limit=audit_limit,
        launcher=launcher, workers=workers,
    )  # fmt: skip


def demo(
    out: opt.Out = RUNS,
    report: Annotated[Path | None, typer.Option("--report", help="Where to write the report.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds, from 0.")] = 3,
    as_json: opt.Json = False,
) -> None:
    """Compare methods on real handwritten digits of which 40 % carry a wrong label."""
    from weathered.cli.comparing import arms_of, compare_arms
    from weathered.demonstration import ARMS, recipe

    compare_arms(recipe(), arms_of(ARMS, None), seeds, out, report, as_json)


def audit(
    run: Annotated[list[Path], typer.Argument(help="A finished run's folder; several for ensembles of scores.")],
    audits: Annotated[
        str | None,
        typer.Option(
            help="As in accuracy,calibration,ood,corruption,certified,labels,sets; by default the quick ones."
        ),
    ] = None,
    ood: Annotated[
        list[str] | None, typer.Option("--ood", help="Data unlike the training set; repeat for more.")
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(help="Scores for the ood audit; msp,energy,knn by default, and outlier-class after cnc-ood."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Audit at most this many test samples.")] = None,
    sigma: Annotated[
        float | None,
        typer.Option(help="Noise of the certified audit, in [0, 1] pixel units; 0.25 by default, none for a linf-net."),
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(help="For the robustness audit, as in pgd:steps=50,square; by default fgsm,pgd,attack-ensemble."),
    ] = None,
    epsilon: Annotated[
        str | None, typer.Option(help="How far attacks may move an input in [0, 1]; 8/255 by default.")
    ] = None,
    norm: Annotated[str | None, typer.Option(help="The norm of that distance: linf, the default, or l2.")] = None,
    new: Annotated[
        list[str] | None, typer.Option("--new", help="Data for the shift audit to compare; repeat for more.")
    ] = None,
    grid: Annotated[
        int | None, typer.Option(help="Cells of a side of the grid of the shortcut audit; 4 by default.")
    ] = None,
    cue: Annotated[
        list[str] | None,
        typer.Option("--cue", help="A region for the shortcut audit, as top,left,height,width; repeat for more."),
    ] = None,
    views: Annotated[
        str | None,
        typer.Option(help="Average probabilities over views of each image, as in flip,shift; kept beside the others."),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Models that the label audit trains, each on all but one part; 5 by default.")
    ] = None,
    pred_probs: Annotated[
        Path | None, typer.Option(help="Out-of-sample probabilities of the training rows, a .npy file, for no folds.")
    ] = None,
    label_score: Annotated[
        str | None, typer.Option(help="What ranks labels in the label audit; corrected-confidence by default.")
    ] = None,
    annotators: Annotated[
        str | None, typer.Option(help="Label columns of one person each, as in first,second,third.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Folds that are trained at a time.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Measure how a finished run behaves, and write the figures beside it."""
    from weathered.cli.audit_options import label_options
    from weathered.cli.auditing import audit_runs

    wanted = [name.strip() for name in audits.split(",") if name.strip()] if audits else None
    labels = label_options(wanted, folds, pred_probs, label_score, annotators, workers)
    given = {
        "ood": {"--ood": ood, "--scores": scores},
        "certified": {"--sigma": sigma},
        "robustness": {"--attacks": attacks, "--epsilon": epsilon, "--norm": norm},
        "shift": {"--new": new},
        "shortcut": {"--grid": grid, "--cue": cue},
    }
    seen = [name.strip() for name in views.split(",")] if views is not None else []
    audit_runs(run, wanted, given, limit, labels, seen, as_json)


def select(
    runs: Annotated[
        list[Path], typer.Argument(help="Finished runs on the same data with groups, or folders that hold them.")
    ],
    delta: Annotated[
        float | None, typer.Option(help="Informativeness from which on a feature counts; 0.3 by default.")
    ] = None,
    window: Annotated[
        float | None, typer.Option(help="Runs less than this below the best accuracy set r0; 0.1 by default.")
    ] = None,
    r0: Annotated[
        float | None, typer.Option("--r0", help="Weight of variation against accuracy; from the runs by default.")
    ] = None,
    scaling: Annotated[
        str | None, typer.Option(help="Bandwidths follow each feature, the default, or are global, as in the paper.")
    ] = None,
    min_count: Annotated[
        int | None, typer.Option(help="Training rows that a class needs in a domain to count there; 50 by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A JSON file to write the result to.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Choose one of several runs by accuracy in the training domains and how their features vary between these."""
    from weathered.cli.selecting import select_and_print

    given = {"delta": delta, "window": window, "r0": r0, "scaling": scaling, "min_count": min_count}
    select_and_print(runs, {name: value for name, value in given.items() if value is not None}, out, as_json)


@opt.takes_recipe_options
def advise(
    data: Annotated[str, typer.Argument(help="Data, or the folder of a finished run on them.")],
    folds: Annotated[int, typer.Option(help="Models that the label audit trains, each on all but one part.")] = 5,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Folds that are trained at a time.")] = None,
    *,
    options: opt.RecipeOptions,
    out: opt.Out = RUNS,
    as_json: opt.Json = False,
) -> None:
    """Estimate what is wrong with the labels, and name the three recipes worth trying first."""
    from weathered.audit.labels.of_run import LabelOptions
    from weathered.cli.advising import advise_on
    from weathered.core.errors import SpecError
    from weathered.recipe import Recipe

    run = Path(data) if (Path(data) / "run.json").is_file() else None
    made = opt.make_recipe(options, None if run else data, seed)
    if run is not None and made != Recipe():
        raise SpecError(f"{run} is a finished run, so options of a recipe would change nothing; leave them out.")
    advise_on(made, run, out, LabelOptions(folds, workers=workers), as_json)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run or comparison folders.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")] = Path("report.html"),
    as_json: opt.Json = False,
) -> None:
    """Write one self-contained HTML report on runs or on a comparison."""
    from weathered.cli.running import report_on

    report_on(runs, out, as_json)


def verify(
    methods: Annotated[list[str] | None, typer.Argument(help="Methods whose claims to run; all without.")] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=2, help="How many seeds, from 0; else each claim's own.")
    ] = None,
    claims: Annotated[Path | None, typer.Option(help="Folder of claims, if not the checkout's.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, one per core by default.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Run claims, paired over seeds, and write what they show to the ledger."""
    from weathered.cli.verifying import verify_claims

    verify_claims(methods or [], seeds, claims, workers, as_json)
