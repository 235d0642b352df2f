"""A report input made of synthetic numbers, real audits of synthetic logits, and hostile names."""

import numpy as np
import torch

from weathered.audit.accuracy import audit_accuracy
from weathered.audit.calibration import audit_calibration
from weathered.audit.corruption import audit_corruption
from weathered.audit.ood import audit_ood
from weathered.audit.result import plain
from weathered.data.dataset import Dataset
from weathered.report.model import ArmAudit, Curve, Method, ReportArm, ReportInput, WorstSample
from weathered.stats import mean_interval, paired_comparison

HOSTILE = "<script>document.title='owned'</script>"
HOSTILE_FILE = '"><img src=x onerror="document.title=\'owned\'">.png'
HOSTILE_END = "</title></script></style><h1>owned</h1>"

CLASSES = ("0", "1", "2", HOSTILE, "4", "5", "a rather long class name with spaces", "7", "8", "9")
MEANS = {"ce": 0.842, "logitclip": 0.903, "jocor": 0.9, "mixup": 0.861, "ldam+drw": 0.835}


def arms(seeds: int = 3, means: dict[str, float] = MEANS, spread: float = 0.006) -> tuple[ReportArm, ...]:
    """Arms whose values share the luck of a seed; the first is the baseline."""
    rng = np.random.default_rng(0)
    luck = rng.normal(0, spread, seeds)
    values = {name: (mean + luck + rng.normal(0, spread / 2, seeds)).tolist() for name, mean in means.items()}
    first = next(iter(means))
    return tuple(
        ReportArm(
            name=name,
            methods=()
            if name == first
            else tuple(Method(slug, {"tau": 1.0, "base": None}) for slug in name.split("+")),
            values=tuple(found),
            estimate=mean_interval(found),
            seconds=8.4 + 31 * k,
            comparison=None if name == first else paired_comparison(found, values[first]),
        )
        for k, (name, found) in enumerate(values.items())
    )


def curves(falling: bool) -> tuple[Curve, ...]:
    found = []
    epochs = tuple(float(e) for e in range(1, 31))
    for k, (name, final) in enumerate(MEANS.items()):
        shape = 1 - np.exp(-np.array(epochs) / (3 + k))
        mean = 2.3 - 1.6 * shape * final if falling else 0.1 + (final - 0.1) * shape
        half = 0.04 * (1.3 - shape)
        found.append(Curve(name, epochs, tuple(mean), tuple(mean - half), tuple(mean + half)))
    return tuple(found)


def audits() -> tuple[ArmAudit, ...]:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 10
    images = torch.randint(256, (600, 1, 8, 8), generator=rng, dtype=torch.uint8)
    data = Dataset.of(images, labels, CLASSES)
    found = []
    for arm, strength in (("ce", 2.5), ("logitclip", 3.5)):
        logits = torch.randn(600, 10, generator=rng) + strength * torch.nn.functional.one_hot(labels, 10)
        counts = torch.tensor([200, 150, 110, 80, 60, 45, 33, 25, 18, 13])
        scores = {name: torch.randn(300, generator=rng).numpy() for name in ("msp", "energy", "knn")}
        sets = {
            name: {score: (torch.randn(200, generator=rng) + k + 1).numpy() for score in scores}
            for k, name in enumerate(("uniform noise (synthetic)", "shuffled pixels (synthetic)"))
        }

        def damage(x: torch.Tensor, kind: str, severity: int, draws: torch.Generator) -> torch.Tensor:
            return x * (1 - 0.15 * severity) if kind == "contrast" else x

        def predict(x: torch.Tensor, logits: torch.Tensor = logits) -> torch.Tensor:
            rows = torch.arange(len(x)) if len(x) < 600 else torch.arange(600)
            return logits[rows] * x.amax((1, 2, 3))[:, None] + torch.arange(10) * (1 - x.amax((1, 2, 3)))[:, None]

        results = [
            audit_accuracy(logits, labels, CLASSES, counts),
            audit_calibration(logits, labels),
            audit_corruption(predict, data, 0, ["contrast", "none"], corrupt=damage),
            audit_ood(scores, sets),
        ]
        found += [ArmAudit(arm, result.to_json()) for result in results]
    return tuple(found)


def worst() -> tuple[WorstSample, ...]:
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, shape).astype(np.uint8) for shape in ((1, 8, 8), (3, 32, 32), (3, 400, 300))]
    samples = [
        WorstSample(
            f"row {17 * k}", CLASSES[k], CLASSES[9 - k], 9.5 - k, 0.999 - k / 50, CLASSES[9 - k], pictures[k % 3]
        )
        for k in range(10)
    ]
    return (
        WorstSample(HOSTILE_FILE, HOSTILE, "8", 12.3, 1.0, None, pictures[0]),
        WorstSample("row of a table", "1", "2", 8.1, 0.98),
        *samples,
    )


def comparison_report(seeds: int = 3, means: dict[str, float] = MEANS) -> ReportInput:
    """Five arms with everything a report can show."""
    return ReportInput(
        title=f"Digits with 40 % wrong labels {HOSTILE_END}",
        metric="test accuracy",
        data="digits (1,437 training and 360 test images, 10 classes), symmetric label noise of 40 %",
        arms=arms(seeds, means),
        baseline=next(iter(means)),
        test_curves=curves(falling=False),
        loss_curves=curves(falling=True),
        audits=audits(),
        worst=worst(),
        worst_title="Most suspicious training labels",
        recipe={"data": {"source": "digits", "noise": "symmetric:0.4"}, "settings": {"epochs": 30, "lr": 0.05}},
        environment={"weathered": "0.1.0", "torch": "2.14", "device": "cpu", "deterministic": True},
        commands=("weathered compare digits --noise symmetric:0.4 --arms ce,logitclip,jocor,mixup,ldam+drw --seeds 3",),
        notes=("575 of 1,437 training labels were replaced, uniformly over the other classes.", HOSTILE),
    )


def single_report() -> ReportInput:
    """One arm, one seed, no comparison."""
    found = [audit for audit in audits() if audit.arm == "ce"]
    result = plain({**found[0].result})
    value = result["summary"]["accuracy"]["value"]
    return ReportInput(
        title="One run",
        metric="accuracy",
        data="digits",
        arms=(ReportArm("ce", (Method("cross-entropy"),), (value,), mean_interval([value]), 75.0),),
        audits=tuple(found),
        test_curves=(Curve("ce", (1.0, 2.0), (0.5, 0.8)),),
    )
