"""The shortcut audit of a finished run: how long it may take, what was done already, what a second classifier says."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from weathered.audit.options import Audited, AuditOptions, audited_data
from weathered.audit.pieces import Pieces, duration, seconds_of
from weathered.audit.result import AuditResult
from weathered.audit.shortcut import BLOCK, audit_shortcut, check_asked, passes
from weathered.core.predict import device_of, eval_mode, prediction_of
from weathered.data.dataset import Dataset
from weathered.nn.chroma_vae import ChromaNetwork
from weathered.stats import proportion_interval


def shortcut(runs: Audited, options: AuditOptions) -> AuditResult:
    """Raises DataError for tables, SpecError for a grid or a cue that does not fit."""
    run, test = runs[0], audited_data(runs[0], options)
    check_asked(test, options.grid, options.cues)
    predict = prediction_of(run.model, run.run)
    if options.announce is not None:
        rows = torch.arange(min(len(test), BLOCK))
        once = seconds_of(lambda: predict(test.floats(rows))) * len(test) / len(rows)
        times = passes(test.inputs.shape, options.grid, len(options.cues))
        options.announce(f"shortcut: {duration(once * times)} for {times} passes over the test images")
    asked = {"grid": options.grid, "cues": [str(cue) for cue in options.cues], "limit": options.limit}
    with Pieces.of(run, "shortcut", **asked) as pieces:
        found = audit_shortcut(
            predict, test, run.recipe.settings.seed, options.grid, options.cues, pieces, options.progress
        )
        return _with_disagreement(found, run.model, predict, test) if _has_two_opinions(run.model) else found


def _has_two_opinions(model: nn.Module) -> bool:
    return isinstance(model, ChromaNetwork) and model.blocks.d1 > 0 and model.blocks.d2 > 0


@torch.no_grad()
def _with_disagreement(found: AuditResult, model: nn.Module, predict, test: Dataset) -> AuditResult:
    """The result with what the classifier on the first block of latents says of the same images."""
    assert isinstance(model, ChromaNetwork)
    said, own = [], []
    with eval_mode(model):
        for rows in torch.arange(len(test)).split(BLOCK):
            x = test.floats(rows).to(device_of(model))
            said.append(model.shortcut_logits(x).argmax(1).cpu())
            own.append(predict(x).argmax(1).cpu())
    first: Tensor = torch.cat(said)
    differs = first != torch.cat(own)
    name = "disagreement with the shortcut classifier"
    share = proportion_interval(float(differs.sum()), len(differs))
    right = float((first == test.labels).double().mean())
    return replace(
        found,
        summary={**found.summary, name: share},
        higher_is_better={**found.higher_is_better, name: True},
        per_sample={**found.per_sample, "shortcut_predicted": first.numpy(), "disagrees": differs.numpy()},
        notes=(
            *found.notes,
            f"The classifier on the first block of latents is right on {right:.1%} of the test images and differs from "
            f"the network's own prediction on {share.value:.1%}, where a shortcut probably contradicts the rest. Much "
            "disagreement says that the blocks were separated, not which of them is right.",
        ),
    )
