"""A recipe with a few-shot method: train on the base classes, freeze, learn to generate, then score on episodes."""

import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int
from torch import Tensor, nn

from weathered.assemble import build
from weathered.audit.result import AuditResult, Chart, Series, Table
from weathered.core.atomic import write_atomically
from weathered.core.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint, write_tensors
from weathered.core.errors import Incompatible, WeatheredError
from weathered.core.facts import check, name_of, traits_of
from weathered.core.predict import device_of, eval_mode
from weathered.core.rng import derive_seed, generator
from weathered.core.run import Run
from weathered.core.watch import Progress
from weathered.data.dataset import Dataset
from weathered.data.prepare import Splits
from weathered.fewshot.classifiers import LOGISTIC, baselines
from weathered.fewshot.episodes import EpisodeOptions, Fetch, FewShotResult, draw_episodes, run_episodes
from weathered.fewshot.figures import HallucinatorFigures, hallucinator_figures
from weathered.fewshot.tfh import TFH, evenly_spaced
from weathered.recipe import Recipe
from weathered.stats import Estimate
from weathered.store import RunFolder

ROOM = 2**31
"""Bytes of feature maps that are kept; where there are more, maps are computed when they are asked for."""
PIECE = 100
"""Training episodes between two looks at the clock."""


class FewShotOutcome(NamedTuple):
    """Accuracies by number of shots, and how the hallucinator does on base classes."""

    results: dict[int, FewShotResult]
    hallucinator: HallucinatorFigures
    method: TFH


def method_of(recipe: Recipe) -> TFH | None:
    """The recipe's few-shot method, freshly built, its draws keyed by the run's seed; None without one."""
    use = recipe.few_shot
    if use is None:
        return None
    seed = derive_seed(recipe.settings.seed, "few-shot", use.options["seed"])
    return build(replace(use, options={**use.options, "seed": seed}))


def feature_maps(model: nn.Module, dataset: Dataset, rows: Int[Tensor, "n"], batch_size: int = 512) -> Tensor:
    """Feature maps (n, c, h, w) of a frozen network in evaluation mode, or rows (n, D) where it has no maps; float32.

    Raises Incompatible for a network without features, or with tokens in place of maps.
    """
    if not hasattr(model, "forward_features"):
        raise Incompatible("a few-shot method needs 'features', but the model has no forward_features.")
    network, device = cast(Any, model), device_of(model)
    with eval_mode(model), torch.no_grad():
        chunks = [network.forward_features(dataset.floats(part).to(device)) for part in rows.split(batch_size)]
    maps = torch.cat([chunk.float().cpu() for chunk in chunks])
    if maps.ndim not in (2, 4):
        raise Incompatible(
            f"a few-shot method needs feature maps (c, h, w), but this network gives {tuple(maps.shape[1:])}; use "
            "cnn_small or a timm convolutional network."
        )
    return maps


def fetcher(model: nn.Module, parts: tuple[Dataset, ...]) -> Fetch:
    """Row numbers, counted through the parts, to features: kept at once where they fit, else computed when asked."""
    sizes = [len(part) for part in parts]
    owner = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(sizes))
    within = torch.cat([torch.arange(size) for size in sizes])
    found = next(part for part in parts if len(part))
    one = feature_maps(model, found, torch.arange(1))
    if sum(sizes) * one.nbytes <= ROOM:
        maps = torch.cat([feature_maps(model, part, torch.arange(len(part))) for part in parts if len(part)])
        return lambda rows: maps[rows]

    def fetch(rows: Tensor) -> Tensor:
        made = one.new_empty(len(rows), *one.shape[1:])
        for number, part in enumerate(parts):
            here = owner[rows] == number
            if bool(here.any()):
                made[here] = feature_maps(model, part, within[rows[here]])
        return made

    return fetch


def _divided(fetch: Fetch, size: float) -> Fetch:
    return lambda rows: fetch(rows) / size


def check_few_shot(method: TFH, run: Run) -> None:
    """Refuse before training what could not be learnt afterwards: data, network, or too few base classes.

    Raises Incompatible in one sentence.
    """
    check(run.facts, (), method)
    if "caption_loss" in traits_of(run.procedure).provides:
        raise Incompatible(
            f"TFH works on the feature maps of a network that was trained to classify, but {name_of(run.procedure)} "
            "trains on captions. Drop one of the two."
        )
    present = int((run.train.class_counts > 0).sum())
    if present < method.ways:
        raise Incompatible(
            f"the training episodes of TFH take ways={method.ways} base classes, but there are {present}; raise "
            "--base-classes, or lower ways as in --use tfh:ways=2."
        )
    try:
        method.check_features(feature_maps(run.model, run.train, torch.arange(min(8, len(run.train)))))
    except WeatheredError:
        raise
    except ValueError as error:
        raise Incompatible(f"TFH: {error}.") from error


def learn_few_shot(
    method: TFH,
    model: nn.Module,
    splits: Splits,
    options: EpisodeOptions,
    seed: int,
    save: "Saver | None" = None,
    watch: Progress | None = None,
) -> FewShotOutcome:
    """Train the method on the base classes' training rows, then score it and all baselines on the same episodes.

    All features are divided by one number, so that those of base classes have the mean size 0.5: the penalty of a
    classifier then means the same for every network.
    seed: of the data, from which episodes are drawn. save: keeps the training of the generator; none without.
    watch: told how many episodes are done, of training and of scoring.
    """
    raw, labels = fetcher(model, (splits.train,)), splits.train.labels
    size = 2 * float(raw(evenly_spaced(len(labels))).abs().mean())
    if not (size > 0 and math.isfinite(size)):
        raise WeatheredError(
            f"the network's features of base classes have the mean size {size / 2}, so nothing is learnt."
        )
    base = _divided(raw, size)
    try:
        while method.episode_ < method.training_episodes:
            method.partial_fit(base, labels, PIECE)
            if save is not None:
                save(method)
            if watch is not None:
                watch("training episodes", method.episode_, method.training_episodes)
        figures = hallucinator_figures(method, base, labels)
        novel = _divided(fetcher(model, splits.novel), size)
        drawn = draw_episodes(
            torch.cat([part.labels for part in splits.novel]),
            options.ways,
            max(options.shots),
            options.queries,
            options.episodes,
            generator(seed, "episodes"),
        )
        methods = {**method.methods(), **baselines(derive_seed(seed, "baselines"))}
        results = {k: run_episodes(methods, novel, drawn.with_shots(k), watch=watch) for k in options.shots}
    except WeatheredError:
        raise
    except ValueError as error:
        raise WeatheredError(f"the few-shot method cannot go on: {error}.") from error
    return FewShotOutcome(results, figures, method)


class Saver:
    """Keeps the training of a generator in a run's checkpoint folder, at least `seconds` apart, and reads it back."""

    def __init__(self, folder: RunFolder, recipe_hash: str, seconds: float):
        self.path, self.recipe_hash, self.seconds = folder.checkpoints / "few-shot", recipe_hash, seconds
        self.saved = time.monotonic()

    def restore(self, method: TFH) -> None:
        """Let the method go on from what was kept, if anything was. Raises CheckpointError if that is damaged."""
        if (path := newest_checkpoint(self.path)) is not None:
            method.load_state_dict(load_checkpoint(path, self.recipe_hash))

    def __call__(self, method: TFH) -> None:
        if time.monotonic() - self.saved >= self.seconds or method.episode_ == method.training_episodes:
            save_checkpoint(self.path, method.state_dict(), self.recipe_hash)
            self.saved = time.monotonic()


def write_outcome(folder: RunFolder, outcome: FewShotOutcome) -> None:
    """Beside the run: `episodes.parquet`, each method's accuracy in each episode, and `hallucinator.safetensors`."""
    columns: dict[str, list[Any]] = {"episode": [], "shots": [], "method": [], "accuracy": []}
    for shots, result in outcome.results.items():
        for name, values in result.accuracies.items():
            columns["episode"] += range(len(values))
            columns["shots"] += [shots] * len(values)
            columns["method"] += [name] * len(values)
            columns["accuracy"] += values.tolist()
    write_atomically(folder.path / "episodes.parquet", lambda part: pq.write_table(pa.table(columns), part))
    state = outcome.method.state_dict()
    tensors = {**state["network"], "scale": torch.tensor(state["scale"], dtype=torch.float64)}
    write_atomically(folder.path / "hallucinator.safetensors", partial(_write_tensors, tensors))


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    write_tensors(path, {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()})


def few_shot_audit(outcome: FewShotOutcome, options: EpisodeOptions, classes: int) -> AuditResult:
    """All methods on the same episodes: accuracy, and the paired difference to logistic regression on the support.

    classes: how many novel ones there are. The summary is of the method in use, fine-tuned where it is.
    """
    main = list(outcome.method.methods())[-1]
    summary, rows = {}, []
    for shots, result in outcome.results.items():
        summary[f"{shots}-shot accuracy"] = result.estimate(main)
        summary[f"{shots}-shot gain over {LOGISTIC}"] = result.difference(main, LOGISTIC).difference
    for name in next(iter(outcome.results.values())).accuracies:
        cells: list[str] = [name]
        for result in outcome.results.values():
            cells.append(with_half_width(result.estimate(name)))
            difference = result.difference(name, LOGISTIC).difference
            cells.append("" if name == LOGISTIC else with_half_width(difference, "+.3f"))
        rows.append(tuple(cells))
    columns = [text for shots in outcome.results for text in (f"{shots}-shot", "difference")]
    title = (
        f"{options.ways}-way accuracy on {classes} novel classes and difference to {LOGISTIC}, with the half-width of "
        f"the 95 % interval over {options.episodes} episodes"
    )
    error, variance, spread = outcome.hallucinator
    return AuditResult(
        "few-shot",
        summary,
        dict.fromkeys(summary, True),
        tables=(
            Table(title, ("method", *columns), tuple(rows)),
            Table(
                "The generator on base classes",
                ("figure", "value"),
                (
                    ("squared error of generated features and their prototypes", error),
                    ("variance of prototypes over classes", variance),
                    ("spread within a class over spread between classes", spread),
                ),
            ),
        ),
        figures=tuple(_chart(shots, result) for shots, result in outcome.results.items()),
        notes=(
            "Intervals are 95 % t intervals over episodes and cover their draw, given these novel classes and this "
            "network; another split of classes or another network may order methods otherwise.",
            "All methods see the same supports and queries, and differences are paired episode by episode.",
            "Accuracy and calibration of the run itself are those of the network on test rows of the base classes.",
        ),
    )


def with_half_width(estimate: Estimate, form: str = ".3f") -> str:
    """A mean and half of its symmetric interval, as in `0.612 ± 0.008`; the mean alone where that is not known."""
    half = estimate.high - estimate.value
    return f"{estimate.value:{form}} ± {half:.3f}" if math.isfinite(half) else f"{estimate.value:{form}}"


def _chart(shots: int, result: FewShotResult) -> Chart:
    names = list(result.accuracies)
    found = [result.estimate(name) for name in names]
    low, high = ([e[i] if math.isfinite(e[i]) else e.value for e in found] for i in (1, 2))
    words = ", ".join(f"{name} {e.value:.3f}" for name, e in zip(names, found, strict=True))
    title = f"Accuracy from {shots} {'image' if shots == 1 else 'images'} of each new class"
    series = (Series("accuracy", names, [e.value for e in found], low, high),)
    return Chart(title, "bar", "method", "accuracy", series, f"Mean over episodes: {words}.")
