"""How to call one part alone, in one's own loop: a few lines of Python for each method, made from its constructor."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from weathered.assemble import entry_of, import_part
from weathered.core.facts import traits_of
from weathered.core.spec import parameters
from weathered.registry import Entry

ARGUMENTS = {
    "parts": "[MixUp(), CutMix()]",
    "epsilon": "0.02",
    "file": "file",
    "imbalance": "50",
    "k": "2",
    "kind": '"fog"',
    "num_classes": "10",
    "rate": "0.4",
    "severity": "3",
    "sigma": "0.25",
    "source": "other",
    "teacher": "teacher",
    "temperature": "-1.0",
}
"""What stands for a constructor argument without a default, by its name; for class counts see `_call`."""

SPELLED = {
    "acil": ("expansion=512",),
    "dd-backdoor": ("attack='naive'", "images_per_class=1"),
    "square": ("queries=200",),
    "nes": ("queries=600", "samples=20"),
    "random-focus": ("epsilon=0.1", "queries=600", "samples=20", "patch=9", "grid=4"),
    "astfocus": ("epsilon=0.1", "queries=600", "samples=20", "patch=9", "grid=4", "hidden=32"),
    "forward-correction": ("noise_rate=0.4",),
    "linf-distance-net": ("epsilon=0.2", "end=0.8"),
    "smoothing": ("n=200",),
    "tfh": ("training_episodes=200",),
}
"""Options that a snippet gives besides: one of several that a method needs, or a smaller value than the default, which
is made for large data, so that it runs in a second."""

SHOWN = {
    "area-under-margin": "print(term.area[:5])  # one value for each training row",
    "cals": "print(term.multipliers)  # one value for each class",
    "center-collapse": "print(term.frame.shape)  # a vertex for each class",
}
"""The line that shows what a term has after training."""

COUNTS = "counts = torch.tensor([500, 400, 300, 200, 150, 100, 80, 50, 30, 20])"
GROUPS = "group_counts = torch.tensor([900, 100])"
COSINE = "logits = CosineHead(16, 10)(torch.randn(8, 16))"
LOGITS = "logits = torch.randn(8, 10, requires_grad=True)"
CORRECTED = "\n".join(
    [
        'file = Path("corrections.csv")',
        'file.write_text("row,old,new\\n0,0,8\\n")  # the first digit, a 0, is said to be an 8',
    ]
)
HELD_OUT = "held_out, train = train.select(torch.arange(50)), train.select(torch.arange(50, len(train)))"
OTHER = "other = Dataset.of(torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8), torch.zeros(50).long())"

TEACHER = "teacher = finish(Recipe(DataOptions(limit=200), settings=Settings(epochs=1))).path  # any finished run"

LOSS = """
labels = torch.randint(10, (8,))
{prepared}
loss = {part}
loss(logits, labels{given}).mean().backward()  # one value for each sample
"""
TRANSFORM = """
images, labels = torch.rand(8, 3, 32, 32), torch.randint(10, (8,))
{prepared}
transform, rng = {part}, torch.Generator().manual_seed(0)
batch = transform(Batch.of(images, labels), rng)
logits = torch.nn.Linear(3 * 32 * 32, 10)(batch.x.flatten(1))
torch.nn.functional.cross_entropy(logits, batch.target.dense(10)).backward()
"""
REWEIGHT = """
losses, labels = torch.rand(8, requires_grad=True), torch.randint(10, (8,))
{prepared}
reweight = {part}
weights = reweight(losses.detach(), Target.hard(labels), progress=0.9)
(weights * losses).mean().backward()
"""
RUN = """
train, test = load_pair("digits", limit=200)
{prepared}
model, settings = build_model("cnn_small", train), Settings(epochs=1, batch_size=50)
run = Run(model, train, {slot}={part}, settings=settings{given})
while run.step < run.total_steps:
    fit(run, max_steps=1)  # do what you like between the steps
logits = run.predict(test)
"""
PROBE = """
train, test = load_pair("digits", limit=200)
{prepared}
model, probe = build_model("cnn_small", train), {part}
fit(Run(model, train, {slot}=probe, settings=Settings(epochs=3, batch_size=50){given}))
print(probe.metrics())  # the mean so far, and the last drop, in nats
"""
TRICK = """
train, test = load_pair("digits", limit=200)
{prepared}
trick = {part}
settings = trick.settings(Settings(epochs=1, batch_size=50))
model = build_model(trick.model("resnet:depth=26,width=8,small=true"), train)
run = fit(Run(model, train, settings=settings))
print((run.predict(test).argmax(1) == test.labels).double().mean())
"""
DECOUPLED = TRICK.replace("batch_size=50", 'batch_size=50, optimizer="adamw"')
SAMPLER = """
labels = torch.arange(10).repeat_interleave(torch.tensor([500, 400, 300, 200, 150, 100, 80, 50, 30, 20]))
{prepared}
weights = {part}.weights(labels, progress=0.9)
rows = torch.multinomial(weights, len(labels), replacement=True)
print(labels[rows].bincount())
"""
TERM = """
train, test = load_pair("digits", limit=200)
{prepared}
model, term = build_model("cnn_small", train), {part}
fit(Run(model, train, terms=[term], settings=Settings(epochs=3, batch_size=50){given}))
{shown}
"""
SET = """
held_out, new = (3 * torch.randn(1000, 10)).double().softmax(1).split(500)
sets = {part}.fit(held_out).predict(new, torch.Generator().manual_seed(0))
print(sets.sum(1).mean(dtype=float))  # labels in a set
"""
SCORE = """
train, test = load_pair("digits", limit=200)
model = build_model("cnn_small", train)
score = {part}.fit_evidence(extract(model, train), train.labels)
print(score.score(extract(model, test))[:5])  # higher is stranger
"""
OUTLIER_SCORE = """
train, test = load_pair("digits", limit=200)
settings = Settings(epochs=1, batch_size=50)
run = fit(Run(build_model("cnn_small", train), train, procedure=CnC(), settings=settings))
model = run.procedure.predictor(run)
score = {part}
print(score.score(extract(model, test))[:5])  # higher is stranger
"""
ATTACK = """
train, test = load_pair("digits", limit=200)
model, x, y = build_model("cnn_small", train), test.floats(torch.arange(8)), test.labels[:8]
moved = {part}(model, x, y, torch.Generator().manual_seed(0))
print((moved - x).abs().max(), (model.eval()(moved).argmax(1) == y).double().mean())
"""
CLIP_ATTACK = """
train, test = load_pair("clips:200")
model = build_model("clip-cnn", train)
fit(Run(model, train, settings=Settings(epochs=8, batch_size=20, optimizer="adam", lr=0.02)))
attack = {part}
found = attack.run(model, test.floats(torch.arange(3)), test.labels[:3], torch.Generator().manual_seed(0))
print(found.success, found.skipped, found.queries, found.perturbation)
"""
ENSEMBLE = """
held_out, new = torch.randn(500, 3), torch.randn(4, 3) + 5  # scores of three models
ensemble = {part}.fit(held_out)
print(ensemble.score(new), ensemble.predict(new))
"""
SELECTION = """
labels, domains = torch.arange(1200) % 2, torch.arange(1200) // 2 % 3
noise, sign = torch.randn(1200, 4), (2 * labels - 1)[:, None]
strengths = [torch.tensor(s)[domains, None] for s in ([2.0, 1.2, 0.6], [1.0, 1.0, 1.0], [1.5, 1.2, 0.9])]
selection = {part}
measured = [selection.measure(s * sign + noise, labels, domains) for s in strengths]  # features of three models
print(selection.choose([0.93, 0.90, 0.92], measured))  # accuracies on held-out rows of the same domains
"""
LEARNER = """
learner = {part}
for first in (0, 5):  # five classes arrive, then five others
    learner.partial_fit(torch.randn(100, 32), torch.randint(first, first + 5, (100,)))
print(learner.predict(torch.randn(4, 32)).argmax(1))
"""
FEW_SHOT = """
features, labels = torch.rand(200, 16, 4, 4), torch.arange(200) % 10  # maps of ten base classes, before pooling
method = {part}.fit(features, labels)
support, queries = torch.rand(1, 5, 2, 16, 4, 4), torch.rand(1, 75, 16)  # one episode, five new classes of two images
print(method.classify(support, queries, numbers=[0], adapt=True))
"""
MAKER = """
data = load("digits")
{prepared}
made = {part}(data, torch.Generator().manual_seed(0))
print(made.notes[-1], len(made))
"""
CERTIFICATE = """
data = load("digits", limit=4)
model, images = build_model("cnn_small", data), data.floats(torch.arange(4))
certificate = {part}.certify(model, images, torch.Generator().manual_seed(0))
print(certificate.labels, certificate.radii)
"""

PAIRS = """
pairs, rows = load("captions:8"), torch.arange(8)
batch = Batch(pairs.floats(rows), Target.hard(pairs.labels), rows, pairs.extra)
mixed = {part}(batch, torch.Generator().manual_seed(0))
print(mixed.extra["caption"][:2])  # two joined captions, as word ids
"""
TOWERS = """
train, test = load_pair("captions:60")
model, settings = build_model("cnn_small", train), Settings(epochs=1, batch_size=15, optimizer="adamw", lr=2e-3)
run = fit(Run(model, train, {slot}={part}, settings=settings))
towers = run.procedure.predictor(run).eval()
images, captions = run.predict(test), towers.embed_captions(test.extra["caption"])
print((images @ captions.T).argmax(1))  # the closest caption of each image
"""
DISTANCES = """
train, test = load_pair("digits", limit=200)
model = build_model("linf-net:width=32", train)
settings = Settings(epochs=40, batch_size=50, optimizer="adam", lr=0.03, weight_decay=0.0)
run = fit(Run(model, train, {slot}={part}, settings=settings))
certificate = LinfMargin().certify(run.procedure.predictor(run), test.floats(torch.arange(len(test))))
print(certificate.certifies(test.labels, radius=0.05).double().mean())
"""
BLOCKS = """
train, test = load_pair("digits", limit=200)
model = build_model("chroma-vae:width=32", train)
settings = Settings(epochs=5, batch_size=50, optimizer="adam", lr=0.003, weight_decay=0.0)
run = fit(Run(model, train, {slot}={part}, settings=settings))
network, images = run.procedure.predictor(run).eval(), test.floats(torch.arange(len(test)))
says, shortcut_says = network(images).argmax(1), network.shortcut_logits(images).argmax(1)
print((says != shortcut_says).double().mean())  # how often the two classifiers disagree
"""
LINF_CERTIFICATE = """
data = load("digits", limit=4)
model, images = build_model("linf-net", data), data.floats(torch.arange(4))
certificate = {part}.certify(model, images)
print(certificate.labels, certificate.radii)
"""
BOUNDS = """
data = load("digits", limit=4)
model, images = build_model("mlp", data), data.floats(torch.arange(4))
certificate = {part}.certify(model, images)
print(certificate.labels, certificate.certified, certificate.lower, certificate.upper)
"""

KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "loss": (LOSS, ()),
    "transform": (TRANSFORM, ("Batch",)),
    "reweight": (REWEIGHT, ("Target",)),
    "procedure": (RUN, ("Run", "Settings", "build_model", "fit", "load_pair")),
    "stepper": (RUN, ("Run", "Settings", "build_model", "fit", "load_pair")),
    "trick": (TRICK, ("Run", "Settings", "build_model", "fit", "load_pair")),
    "probe": (PROBE, ("Run", "Settings", "build_model", "fit", "load_pair")),
    "sampler": (SAMPLER, ()),
    "set": (SET, ()),
    "term": (TERM, ("Run", "Settings", "build_model", "fit", "load_pair")),
    "score": (SCORE, ("build_model", "load_pair")),
    "attack": (ATTACK, ("build_model", "load_pair")),
    "ensemble": (ENSEMBLE, ()),
    "selection": (SELECTION, ()),
    "learner": (LEARNER, ()),
    "few-shot": (FEW_SHOT, ()),
    "maker": (MAKER, ("load",)),
    "certificate": (CERTIFICATE, ("build_model", "load")),
}
"""Slot -> the lines, and the names that they take from the package besides the method's own."""

OF_METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "large-decay": (DECOUPLED, ("Run", "Settings", "build_model", "fit", "load_pair")),
    "mixgen": (PAIRS, ("Batch", "Target", "load")),
    "contrastive": (TOWERS, ("Run", "Settings", "build_model", "fit", "load_pair")),
    "linf-distance-net": (DISTANCES, ("LinfMargin", "Run", "Settings", "build_model", "fit", "load_pair")),
    "chroma-vae": (BLOCKS, ("Run", "Settings", "build_model", "fit", "load_pair")),
    "linf-margin": (LINF_CERTIFICATE, ("build_model", "load")),
    "interval-bounds": (BOUNDS, ("build_model", "load")),
    "astfocus": (CLIP_ATTACK, ("Run", "Settings", "build_model", "fit", "load_pair")),
    "random-focus": (CLIP_ATTACK, ("Run", "Settings", "build_model", "fit", "load_pair")),
    "outlier-class": (OUTLIER_SCORE, ("CnC", "Run", "Settings", "build_model", "fit", "load_pair")),
}
"""Methods whose lines are not those of their slot."""


def snippet(slug: str, defaults: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Python that calls a method alone and runs as it stands; that of a bundle calls its parts one after another.

    defaults: what a bundle gives its parts in place of their own defaults.
    """
    entry = entry_of(slug)
    if entry.parts:
        return "\n".join(f"# {part}\n{snippet(part, dict(entry.defaults))}" for part in entry.parts)
    part = import_part(entry)
    lines, names = OF_METHODS.get(entry.slug, KINDS[entry.slot])
    prepared = _prepared(entry, part)
    streams = [fact.partition(":")[2] for fact in traits_of(part).needs if fact.startswith("aux:")]
    given = ", aux={" + ", ".join(f'"{name}": other' for name in streams) + "}" if streams else ""
    given += ", validation=held_out" if HELD_OUT in prepared else ""
    if "group" in traits_of(part).needs and entry.slot == "loss":
        given = ", group=torch.randint(2, (8,))"
    call = _call(entry, part, "train.class_counts" if lines is RUN else "counts", defaults)
    shown = SHOWN.get(entry.slug, "")
    body = lines.format(part=call, slot=entry.slot, prepared="\n".join(prepared), given=given, shown=shown).strip()
    body = "\n".join(line for line in body.splitlines() if line)
    extra = ("Dataset",) if OTHER in prepared else ("CutMix", "MixUp") if "parts" in _required(part) else ()
    imports = [f"from weathered import {', '.join(sorted({entry.class_name, *names, *extra}))}"]
    if COSINE in prepared:
        imports.append("from weathered.nn.heads import CosineHead")
    if entry.slot == "score":
        imports.append("from weathered.scores.extract import extract")
    if "torch." in body:
        imports.insert(0, "import torch\n")
    if TEACHER in prepared:
        imports += [
            "from weathered.recipe import DataOptions, Recipe",
            "from weathered.training import train as finish",
        ]
    if CORRECTED in prepared:
        imports.insert(0, "from pathlib import Path\n")
    return "\n".join(imports) + "\n\n" + body + "\n"


def _prepared(entry: Entry, part: Any) -> list[str]:
    """Lines that make what the constructor or the call takes."""
    needed = _required(part)
    lines = [COUNTS] if "class_counts" in needed and KINDS[entry.slot][0] is not RUN else []
    lines += [GROUPS] if "group_counts" in needed else []
    if "source" in needed or any(fact.startswith("aux:") for fact in traits_of(part).needs):
        lines.append(OTHER)
    if "validation" in traits_of(part).needs and "{given}" in KINDS[entry.slot][0]:
        lines.append(HELD_OUT)
    if "teacher" in needed:
        lines.append(TEACHER)
    if "file" in needed:
        lines.append(CORRECTED)
    if entry.slot == "loss":
        lines.append(COSINE if "cosine_head" in traits_of(part).needs else LOGITS)
    return lines


def _call(entry: Entry, part: Any, counts: str, defaults: Mapping[str, Any]) -> str:
    filled = {"class_counts": counts, "group_counts": "group_counts"}
    given = [filled.get(name) or f"{name}={ARGUMENTS[name]}" for name in _required(part)]
    own = parameters(part)
    given += [f"{name}={value!r}" for name, value in defaults.items() if name in own and own[name].default != value]
    return f"{entry.class_name}({', '.join([*given, *SPELLED.get(entry.slug, ())])})"


def _required(part: Any) -> list[str]:
    return [name for name, argument in parameters(part).items() if argument.default is argument.empty]
