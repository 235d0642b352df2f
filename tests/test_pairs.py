"""Pairs of training parts run two steps or are refused with a reason; honours equals what is called."""

from itertools import combinations_with_replacement
from zlib import crc32

import pytest
import torch

from weathered.assemble import build, build_parts, resolve
from weathered.core.errors import DataError, Incompatible, SpecError
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.tokens import RESERVED
from weathered.data.auxiliary import load_auxiliary
from weathered.data.prepare import Splits
from weathered.data.sources import load
from weathered.fewshot.episodes import EpisodeOptions
from weathered.fewshot.recipe_run import check_few_shot, learn_few_shot
from weathered.fewshot.split import few_shot_split
from weathered.incremental.recipe_run import base_split, learn_phases
from weathered.nn.build import build_model
from weathered.recipe import DataOptions, Recipe
from weathered.registry import ENTRIES, TRAINING_SLOTS
from weathered.training import train

CHEAP = {
    "multimix": "multimix:num_tuples=20",
    "one-of": "one-of:parts=['mixup','crop-flip']",
    "acil": "acil:expansion=16",
    "absgd": "absgd:temperature=-2.0",
    "linf-distance-net": "linf-distance-net:start=0.0,end=0.5",
    "forward-correction": "forward-correction:noise_rate=0.4",
    "tfh": "tfh:training_episodes=2,generated=2,adapt_steps=1,ways=2,images=3",
    "smoothmix": "smoothmix:num_noise=2,attack_steps=1",
    "distillation": "distillation:teacher=teacher",
    "dd-backdoor": "dd-backdoor:images_per_class=1,outer=2,inner=1,portion=0.1,trigger_steps=1,network_epochs=2",
    "drw": "drw:start=0.0",
    "odnl": "odnl:aux_batch=16",
    "outlier-exposure": "outlier-exposure:aux_batch=16",
    "pgd-training": "pgd-training:steps=1",
    "trades": "trades:steps=1",
    "open-sampling": "open-sampling:aux_batch=16",
    "risda": "risda:start=0.0",
    "self-adaptive-self-supervised": "self-adaptive-self-supervised:hidden=16,size=8",
    "self-adaptive-trades": "self-adaptive-trades:epsilon=0.1,steps=1,start=0.0",
    "self-adaptive-training": "self-adaptive-training:start=0.0",
    "selective": "selective:start=0.0",
}
MODELS = {"linf-distance-net": "linf-net:width=16,depth=2", "chroma-vae": "chroma-vae:width=16"}
"""Methods that are made for one network."""
PARTS = [
    CHEAP.get(entry.slug, entry.slug) for entry in ENTRIES if entry.slot in (*TRAINING_SLOTS, "learner", "few-shot")
]
EPISODES = EpisodeOptions(ways=2, shots=(1,), queries=2, episodes=2, base_classes=5)
PROCEDURES = {CHEAP.get(entry.slug, entry.slug) for entry in ENTRIES if entry.slot == "procedure"}
PHASES = (tuple(range(5)), *((label,) for label in range(5, 10)))


def in_company(pair):
    """The parts of a pair, with the procedure that mixgen needs where neither of them is one."""
    specs = list(dict.fromkeys(pair))
    return [*specs, "contrastive"] if "mixgen" in specs and not PROCEDURES & set(specs) else specs


def build_run(specs, dataset):
    uses = resolve(specs)
    if any(use.entry.slot == "learner" for use in uses):
        dataset = base_split(Splits(dataset, None, dataset), PHASES).train
    few_shot = next((use for use in uses if use.entry.slot == "few-shot"), None)
    if few_shot and not dataset.is_segmentation:
        dataset = few_shot_split(dataset, dataset, EPISODES, 0, few_shot.slug).train
    parts = build_parts(uses, dataset)

    def model(seed):
        return build_model(network, dataset, head=parts.head, seed=seed)

    network = next((MODELS[use.slug] for use in uses if use.slug in MODELS), "cnn_small:width=8")
    network = "unet:width=8,depth=1" if dataset.is_segmentation else network
    aux = {"ood": load_auxiliary("gaussian:size=32", dataset, 0)}
    settings = Settings(epochs=1, batch_size=16)
    run = Run(model, dataset, validation=dataset, aux=aux, settings=settings, **parts.slots)
    if few_shot:
        check_few_shot(build(few_shot), run)
    return run


@pytest.fixture(scope="module", autouse=True)
def teacher(tmp_path_factory):
    """A run in the folder `teacher` of the working directory, for the part that learns from one."""
    folder = tmp_path_factory.mktemp("teacher")
    settings = Settings(epochs=1, batch_size=50, evaluations=0)
    run = train(Recipe(DataOptions(limit=100), "cnn_small:width=8", settings=settings), folder)
    run.path.rename(folder / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@pytest.fixture(scope="module")
def tiny(digits):
    rows = digits.select(torch.arange(64)).replace(group_names=("even rows", "odd rows"), words=tuple("abcdefghij"))
    captions = torch.stack([rows.labels, rows.labels.flip(0)], 1) + RESERVED
    return rows.replace(extra={"group": torch.arange(64) % 2, "caption": captions})


def pairs():
    """All pairs; the default suite takes those of a part with itself and a fixed quarter of the others."""
    for pair in combinations_with_replacement(PARTS, 2):
        chosen = pair[0] == pair[1] or crc32("+".join(pair).encode()) % 4 == 0
        yield pytest.param(pair, id="+".join(pair), marks=() if chosen else pytest.mark.slow)


@pytest.mark.parametrize("pair", pairs())
def test_a_pair_runs_or_is_refused(pair, tiny):
    specs = in_company(pair)
    try:
        run = build_run(specs, tiny)
    except (Incompatible, SpecError) as refusal:
        message = str(refusal)
        assert any(way in message for way in ("Drop one", "Remove", "before", "To provide it")), message
        return
    before = torch.cat([p.detach().flatten().clone() for p in run.parameters])
    fit(run, max_steps=2)
    after = torch.cat([p.detach().flatten() for p in run.parameters])
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)
    for slot, part in run.parts:
        assert run.used[id(part)] >= (1 if slot in ("sampler", "probe") else 2)
    for use in resolve(specs):
        if use.entry.slot == "learner":
            splits = Splits(tiny, None, tiny)
            classifier, _ = learn_phases(build(use), run.procedure.predictor(run), splits, tiny.labels, PHASES)
            scores = classifier(tiny.floats(torch.arange(len(tiny))))
            assert bool((scores.isfinite() & (scores > -1e9)).all())
        if use.entry.slot == "few-shot":
            split = few_shot_split(tiny, tiny, EPISODES, 0, use.slug)
            splits = Splits(split.train, None, split.test, novel=split.novel)
            found = learn_few_shot(build(use), run.procedure.predictor(run), splits, EPISODES, 0)
            assert all(len(values) == 2 for values in found.results[1].accuracies.values())


def test_every_part_runs_alone_and_some_pairs_are_refused(tiny):
    refused = 0
    for specs in combinations_with_replacement(PARTS, 2):
        try:
            build_run(in_company(specs), tiny)
        except (Incompatible, SpecError):
            assert specs[0] != specs[1], f"{specs[0]} is refused alone"
            refused += 1
    assert 0 < refused < len(PARTS) ** 2 / 2


@pytest.fixture(scope="module")
def pixels():
    data = load("shapes:120")
    assert bool((data.class_counts > 0).all())
    return data


ON_PIXELS = {
    *("cross-entropy", "label-smoothing", "gce", "symmetric-cross-entropy", "forward-correction:noise_rate=0.4"),
    *("alpha-loss", "logitclip", "logitnorm", "ldam", "focal", "logit-adjustment", "vs-loss", "bayias"),
    *("drw:start=0.0", "class-balanced", "cdb", "crop-flip", "supervised", "cals", "center-collapse", "plain"),
    "softmax-binary-cross-entropy",
}
"""Parts that work on labels of pixels; all others are refused."""


@pytest.mark.parametrize("part", PARTS)
def test_a_part_runs_on_pixels_or_is_refused(part, pixels):
    """Segmentation data: the loss falls within a few steps, or the part says that it needs labels of samples."""
    if part not in ON_PIXELS:
        with pytest.raises((Incompatible, DataError), match="one label for each sample|there are no groups"):
            build_run([part], pixels)
        return
    run = build_run([part], pixels)
    batch = run.prepare(pixels.inputs.fetch(torch.arange(16)), pixels.labels[:16], torch.arange(16))
    run.model.train()
    before = float(run.objective(run.forward(batch.x), batch).detach())
    fit(run, max_steps=7)
    assert float(run.objective(run.forward(batch.x), batch).detach()) < before


@pytest.mark.parametrize("procedure", [e.slug for e in ENTRIES if e.slot == "procedure"])
def test_honours_equals_what_is_called(procedure, tiny):
    """Each slot that a procedure declares is really called, and no part is called in a slot that it does not."""
    fillers = {"loss": "label-smoothing", "reweight": "drw:start=0.0", "transform": "crop-flip", "stepper": "plain"}
    reasons: list[tuple[str, str]] = []
    for slot, filler in fillers.items():
        specs = [CHEAP.get(procedure, procedure), filler]
        try:
            run = build_run(specs, tiny)
        except Incompatible as refusal:
            reasons.append((slot, str(refusal)))
            run = build_run(specs[:1], tiny)
            assert slot not in run.procedure.traits.honours
            fit(run, max_steps=1)
            if slot == "loss":
                assert not run.used[id(run.loss_part)]
            continue
        assert slot in run.procedure.traits.honours
        fit(run, max_steps=1)
    assert all(f"the slot '{slot}'" in reason for slot, reason in reasons)
