"""The demonstration: what `weathered demo` compares, small enough for a laptop's two cores."""

from weathered.core.settings import Settings
from weathered.recipe import DataOptions, Recipe

ARMS = "ce,label-smoothing,logitclip:tau=0.5,mixup:alpha=8,jocor:co_lambda=0.85,forget_rate=0.4,ramp=0.15,cutmix"
"""Five methods against cross entropy, with the settings their cards give for label noise of this kind."""


def recipe() -> Recipe:
    """Handwritten digits with 40 % symmetric label noise, cnn_small, 10 epochs."""
    return Recipe(
        data=DataOptions(train="digits", make=("symmetric:rate=0.4",)),
        settings=Settings(epochs=10, batch_size=64, lr=0.05),
    )
