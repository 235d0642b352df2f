"""Claim: a classifier on the large block of a Chroma-VAE is mostly free of a shortcut (Yang et al., NeurIPS 2022)."""

from dataclasses import replace

from common import accuracy, split_digits
from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.makers.shortcut import Shortcut
from weathered.nn.build import build_model
from weathered.procedures.chroma_vae import ChromaVAE
from weathered.verification import Measured

SLUG = "chroma-vae"
SENTENCE = (
    "Trained on images in which a patch tells the class, neighbours in the large block of a Chroma-VAE are right more "
    "often where the patch contradicts the class than a plain classifier is."
)
DATA = (
    "scikit-learn digits, 0 to 4 against 5 to 9, 1297 train images with a white or black corner of 3 x 3 pixels that "
    "follows the class, 500 test images in which it contradicts the class"
)
METRIC = "accuracy on test images whose patch contradicts the class, in [0, 1]"
BASELINE = "plain classifier"
MAIN = "chroma-vae"
ARMS = ("plain classifier", "plain autoencoder with neighbours", "chroma-vae")
HIGHER_IS_BETTER = True
ALSO = (
    "accuracy on test images whose patch follows the class, in [0, 1]",
    "accuracy on test images whose patch is random, in [0, 1]",
    "accuracy on test images whose colour contradicts the class, after training on a colour as the shortcut, in [0, 1]",
    "accuracy on test images whose colour follows the class, after training on a colour as the shortcut, in [0, 1]",
)

TRAIN = 1297
SETTINGS = Settings(
    epochs=60, batch_size=64, optimizer="adam", lr=0.002, weight_decay=0.0, schedule="constant", evaluations=0
)
NETWORKS: dict[str, tuple[str, float]] = {
    "plain classifier": ("mlp:width=128,depth=1", 0.0),
    "plain autoencoder with neighbours": ("chroma-vae:d1=2,d2=12,width=128", 0.0),
    "chroma-vae": ("chroma-vae:d1=2,d2=12,width=128", 100.0),
}
"""The network of each arm, and the weight of the label in an autoencoder."""

AGREEMENTS = {"contradicts": 0.0, "follows": 1.0, "random": None}


def measure(seed: int) -> Measured:
    """Accuracy of each arm on test sets that differ in the cue alone; one tuning for all arms.

    The seed draws the split, the cues, the weights, the order of the rows and the latents.
    """
    train, test = split_digits(SLUG, seed, TRAIN)
    values, also = {}, {name: {} for name in ALSO}
    for arm, (network, weight) in NETWORKS.items():
        found = {}
        for kind in ("patch", "colour"):
            cued = Shortcut(kind=kind, halves=True)(train, generator(seed, "cues", SLUG))
            procedure = Procedure() if network.startswith("mlp") else ChromaVAE(label_weight=weight)
            model = build_model(network, cued, seed=seed)
            run = fit(Run(model, cued, procedure=procedure, settings=replace(SETTINGS, seed=seed)))
            for how, agreement in AGREEMENTS.items():
                maker = Shortcut(kind=kind, halves=True, test_agreement=agreement)
                shown = maker.test_set(test, generator(seed, "test cues", SLUG))
                found[kind, how] = accuracy(run.predict(shown), shown.labels)
        values[arm] = found["patch", "contradicts"]
        measured = (
            found["patch", "follows"],
            found["patch", "random"],
            found["colour", "contradicts"],
            found["colour", "follows"],
        )
        for name, value in zip(ALSO, measured, strict=True):
            also[name][arm] = value
    return Measured(values, also)
