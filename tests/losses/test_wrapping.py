"""A loss around another hides nothing of it: needs, keywords, state, the call after each epoch, soft, test scale."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.errors import Incompatible
from weathered.core.facts import Traits, traits_of
from weathered.core.fit import fit
from weathered.core.objective import losses_of
from weathered.core.roles import Part
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.losses.base import WrappingLoss
from weathered.losses.bayias import Bayias
from weathered.losses.ldam import LDAM
from weathered.losses.logit_adjustment import LogitAdjustment
from weathered.losses.logitclip import LogitClip, clip_logits
from weathered.losses.vs_loss import VSLoss
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model


class Momentum(Part):
    """Cross entropy plus the distance of the features' norm to its running average; not linear in the target."""

    traits = Traits(needs={"features": "takes their norm"}, batchwise=True)

    def __init__(self, clip: float | None = None):
        self.average, self.epochs, self.soft_calls, self.clip = 0.0, 0, 0, clip

    def __call__(self, logits, labels, features):
        return self._losses(logits, F.one_hot(labels, logits.shape[1]).to(logits), features)

    def soft(self, logits, target, features):
        self.soft_calls += 1
        return self._losses(logits, target, features)

    def _losses(self, logits, target, features):
        logits = logits if self.clip is None else clip_logits(logits, self.clip)
        norm = features.norm(dim=1)
        self.average = 0.9 * self.average + 0.1 * float(norm.detach().mean())
        entropy = F.cross_entropy(logits, target, reduction="none")
        return entropy * (1 + self.epochs) + 0.1 * (norm - self.average) ** 2 * target.square().sum(1)

    def test_logits(self, logits):
        return 3 * logits

    def state_dict(self):
        return {"average": self.average, "epochs": self.epochs}

    def load_state_dict(self, state):
        self.average, self.epochs = state["average"], state["epochs"]

    def after_epoch(self, run):
        self.epochs += 1


def make(data: Dataset, loss: Part, transforms: tuple = ()) -> Run:
    return Run(
        lambda seed: build_model("mlp:width=16", data, seed=seed),
        data,
        loss=loss,
        transforms=transforms,
        settings=Settings(epochs=3, batch_size=40, checkpoint_seconds=0),
    )


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


@pytest.mark.parametrize("transforms", [(), (MixUp(),)], ids=["hard", "mixed"])
def test_a_run_with_a_wrapped_loss_is_the_run_with_the_loss_written_as_one(small_digits: Dataset, transforms):
    """Nested too: the outer clip at infinity changes nothing."""
    whole = fit(make(small_digits, Momentum(clip=0.5), transforms))
    base = Momentum()
    wrapped = fit(make(small_digits, LogitClip(torch.inf, base=LogitClip(0.5, base=base)), transforms))
    assert torch.equal(weights(wrapped), weights(whole))
    assert not torch.equal(weights(fit(make(small_digits, Momentum(), transforms))), weights(whole))
    assert base.epochs == 3
    assert (base.soft_calls > 0) == bool(transforms)
    assert_close(wrapped.predict(small_digits), whole.predict(small_digits))


@pytest.mark.parametrize("cut", [3, 5, 7])
def test_a_wrapped_loss_with_state_resumes_bit_for_bit(small_digits: Dataset, tmp_path, cut):
    def loss() -> LogitClip:
        return LogitClip(0.5, base=Momentum())

    whole = fit(make(small_digits, loss()))
    fit(make(small_digits, loss()), folder=tmp_path, recipe_hash="r", max_steps=cut)
    resumed = make(small_digits, loss())
    fit(resumed, folder=tmp_path, recipe_hash="r")
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.loss_part.state_dict() == whole.loss_part.state_dict()
    assert resumed.loss_part.state_dict()["epochs"] == 3


def test_needs_of_the_base_are_checked(small_digits: Dataset):
    part = LogitClip(base=Momentum())
    assert traits_of(part) == traits_of(part.base)
    bare = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(Incompatible, match="LogitClip needs 'features'"):
        Run(bare, small_digits, loss=part)


def test_a_base_without_soft_is_called_once_for_each_label_of_a_mixture():
    calls = []

    class Absolute(Part):
        def __call__(self, logits, labels):
            calls.append(labels)
            return 1 - logits.softmax(1).gather(1, labels[:, None])[:, 0]

    part = LogitClip(0.5, base=Absolute())
    assert not hasattr(part, "soft")
    logits, labels = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    target = Target.hard(labels).mix(labels.roll(1), torch.tensor(0.3))
    found = losses_of(part, logits, target)
    assert len(calls) == 2
    assert_close(found, 0.3 * part(logits, labels) + 0.7 * part(logits, labels.roll(1)))


def test_low_precision_distributions_reach_the_base():
    """Rows in bfloat16 sum to 1 within a few thousandths only."""
    p = torch.rand(8, 10, generator=torch.Generator().manual_seed(0)).softmax(1).bfloat16()
    logits = torch.randn(8, 10, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.isfinite(LogitClip(1.0).soft(logits, p)).all()


def test_unknown_keywords_and_state_are_refused():
    with pytest.raises(TypeError, match="features"):
        LogitClip()(torch.zeros(2, 3), torch.tensor([0, 1]), features=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="has no state"):
        LogitClip().load_state_dict({"average": 1.0})

    def plain(logits, labels):
        return logits.sum(1)

    part = LogitClip(base=plain)
    assert part.state_dict() == {}
    with pytest.raises(ValueError, match="LogitClip has no state"):
        part.load_state_dict({"average": 1.0})


def test_another_method_writes_its_change_of_the_logits_only():
    class Halved(WrappingLoss):
        def transform_logits(self, logits):
            return logits / 2

    z, y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    assert_close(Halved()(z, y), F.cross_entropy(z / 2, y, reduction="none"))
    assert torch.equal(Halved().test_logits(z), z)


COSINES = torch.linspace(-0.9, 0.9, 12, dtype=torch.float64).view(4, 3)


@pytest.mark.parametrize("outer", [Bayias, VSLoss, LogitAdjustment])
def test_around_ldam_logits_are_changed_after_its_scale(outer):
    counts, labels = (100, 20, 5), torch.tensor([0, 1, 2, 1])
    base = LDAM(counts)
    part = outer(counts, base=base)
    margin = base.scale * base.margins * F.one_hot(labels, 3)
    expected = F.cross_entropy(part.transform_logits(30 * COSINES) - margin, labels, reduction="none")
    assert_close(part(COSINES, labels), expected)
    assert_close(part.test_logits(COSINES), 30 * COSINES)


def test_losses_around_losses_around_ldam_change_what_it_scaled():
    counts, labels = (100, 20, 5), torch.tensor([0, 1, 2, 1])
    offsets = LogitAdjustment(counts).offsets

    class Adjusting(WrappingLoss):
        def transform_logits(self, logits):
            return logits + offsets.to(logits)

    found = Adjusting(LogitAdjustment(counts, base=LDAM(counts)))(COSINES, labels)
    assert_close(found, LogitAdjustment(counts, tau=2.0, base=LDAM(counts))(COSINES, labels))


def test_around_ldam_logits_that_are_no_cosines_are_still_refused():
    with pytest.raises(ValueError, match="needs cosines"):
        Bayias((100, 20, 5), base=LDAM((100, 20, 5)))(2 * COSINES, torch.tensor([0, 1, 2, 1]))
