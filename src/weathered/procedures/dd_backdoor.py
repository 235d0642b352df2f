"""Backdoors in distilled data: distil the training images into a few, with or without a trigger planted in them.

Source: Liu, Li, Backes, Shen and Zhang, "Backdoor Attacks Against Dataset Distillation", NDSS 2023; the distillers are
gradient matching (Zhao, ICLR 2021) and unrolled learning (Wang, 2018), see `weathered.distil`. A fixed share of the
training rows is stamped with a patch and relabelled as the target class wherever the distiller sees it. `naive` stamps
white; `doorping` changes the patch during distilling, so that a neuron of the network of the moment answers to it.
Limits: portion = 0 is the clean distillation bit for bit, and the patch is never changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from weathered.core.batch import Batch
from weathered.core.errors import DataError, Incompatible, SpecError
from weathered.core.facts import Traits
from weathered.core.procedure import Procedure
from weathered.core.rng import generator
from weathered.core.target import Target
from weathered.data.patch import Patch, near_corner
from weathered.distil.gradient_matching import loops_for, matching_loss
from weathered.distil.synthetic import (
    FILE,
    Distilled,
    SyntheticSet,
    learn_from,
    settle_norms,
    write_distilled,
)
from weathered.distil.trigger import poisoned_rows, random_bytes, update_trigger, white
from weathered.distil.unrolled import StepSizes, raw_step, unroll
from weathered.nn.network import input_statistics
from weathered.procedures.base import check_range

if TYPE_CHECKING:
    from weathered.core.run import Run

SYNTHETIC, LEARNER, STEPS = "synthetic", "learner", "step sizes"
"""The names of the modules of a run."""

FINAL = {"momentum": 0.9, "weight_decay": 5e-4, "drop": True}
"""How the network that predicts learns from images of gradient matching."""


class BackdooredDistillation(Procedure):
    """Distil the training images into a few, and predict by a fresh network that learned from those alone.

    For audits of a pipeline of your own: triggers are planted in data that you own, the file with the images says so.

    attack: none, naive or doorping. distiller: gradient-matching or unrolled. images_per_class >= 1. portion in [0, 1):
    share of the training rows that is poisoned. target: the class that stamped images are to be taken for. patch_size
    >= 1: height and width of the patch, one pixel off the lower right corner. clip: keep the patch of doorping in
    [0, 1], as an image file does; the authors do not. trigger_steps, alpha: see `update_trigger`.
    outer, inner: loops of gradient matching, by default the authors' for 1, 10, 20, 30, 40 or 50 images of a class.
    batches, rounds, step_size, fresh_start: of unrolled learning: how many batches of images_per_class of each class,
    rounds over them, the first step size, and whether each step begins from new weights; by default 10, 3, 0.001 and
    false, which is from the run's own weights, also at test time.
    network_lr, network_epochs: of networks that learn from images of gradient matching.

    A step of the run is one outer step on one batch of real images; its optimizer and learning rate are those of the
    synthetic images, in units of deviations. With gradient matching a batch should hold up to 256 images of each class.
    The authors take sgd, lr 0.1, momentum 0.5 for gradient matching, adam, lr 0.01, momentum 0.5 for unrolled learning,
    both without weight decay and with a constant rate. Each evaluation during training trains a network from scratch.
    `trigger` is the patch, `poisoned` (N,) marks the rows. The run's folder receives `synthetic.safetensors`.
    Raises ValueError for arguments out of range, and in `setup` SpecError or DataError where they do not fit the data.
    """

    traits = Traits(
        needs={
            "image": "learns images, and stamps a patch on them",
            "range01": "stamps pixels in [0, 1]",
            "hard_target": "learns images of each class, and relabels what it stamps",
            "class_counts": "needs a real image of every class",
        },
        honours=frozenset({"sampler", "stepper"}),
    )

    def __init__(
        self,
        attack: Literal["none", "naive", "doorping"] = "doorping",
        distiller: Literal["gradient-matching", "unrolled"] = "gradient-matching",
        images_per_class: int = 10,
        portion: float = 0.01,
        target: int = 0,
        patch_size: int = 2,
        clip: bool = True,
        trigger_steps: int = 1000,
        alpha: float = 10.0,
        outer: int | None = None,
        inner: int | None = None,
        batches: int | None = None,
        rounds: int | None = None,
        step_size: float | None = None,
        fresh_start: bool | None = None,
        network_lr: float = 0.01,
        network_epochs: int = 300,
    ):
        if attack not in ("none", "naive", "doorping"):
            raise ValueError(f"attack must be 'none', 'naive' or 'doorping', got '{attack}'")
        if distiller not in ("gradient-matching", "unrolled"):
            raise ValueError(f"distiller must be 'gradient-matching' or 'unrolled', got '{distiller}'")
        matching, unrolled = {"outer": outer, "inner": inner}, {"batches": batches, "rounds": rounds}
        unrolled |= {"step_size": step_size, "fresh_start": fresh_start}
        foreign = unrolled if distiller == "gradient-matching" else matching
        if idle := [name for name, value in foreign.items() if value is not None]:
            raise ValueError(f"{', '.join(idle)} would do nothing with the distiller {distiller}; leave it out")
        for name, value in (("images_per_class", images_per_class), ("patch_size", patch_size)):
            check_range(name, value, value >= 1, "[1, infinity)")
        for name, value in (("target", target), ("trigger_steps", trigger_steps), ("network_epochs", network_epochs)):
            check_range(name, value, value >= 0, "[0, infinity)")
        check_range("portion", portion, 0 <= portion < 1, "[0, 1)")
        check_range("alpha", alpha, 1 < alpha < float("inf"), "(1, infinity)")
        check_range("network_lr", network_lr, 0 < network_lr < float("inf"), "(0, infinity)")
        if distiller == "gradient-matching":
            self.outer, self.inner = loops_for(images_per_class, outer, inner)
            if attack == "doorping" and self.outer == 1:
                raise ValueError("outer must be at least 2 for doorping, which changes its patch between outer steps")
        self.batches = 1 if distiller == "gradient-matching" else 10 if batches is None else batches
        self.rounds, self.step_size = 3 if rounds is None else rounds, 0.001 if step_size is None else step_size
        for name, value in (("batches", self.batches), ("rounds", self.rounds)):
            check_range(name, value, value >= 1, "[1, infinity)")
        raw_step(self.step_size)
        self.attack, self.distiller, self.images_per_class = attack, distiller, images_per_class
        self.portion, self.target, self.patch_size, self.clip = portion, target, patch_size, clip
        self.trigger_steps, self.alpha, self.fresh_start = trigger_steps, alpha, bool(fresh_start)
        self.network_lr, self.network_epochs = network_lr, network_epochs

    def setup(self, run: Run) -> dict[str, nn.Module]:
        self._check(run)
        data, shape = run.train, run.train.inputs.shape
        rng = generator(run.seed, "first trigger")
        start = random_bytes if self.attack == "doorping" else lambda channels, size, rng: white(channels, size)
        try:
            self.trigger: Patch = near_corner(start(shape[0], self.patch_size, rng).to(run.device), shape)
        except ValueError as error:
            raise SpecError(f"dd-backdoor: {error}. Lower patch_size.") from None
        self.poisoned: Bool[Tensor, "N"] = poisoned_rows(len(data), self.portion, generator(run.seed, "poisoned rows"))
        if self.attack == "none":
            self.poisoned = torch.zeros_like(self.poisoned)
        self._trained: tuple[int, nn.Module] | None = None
        labels = torch.arange(data.num_classes).repeat_interleave(self.images_per_class).repeat(self.batches)
        images = SyntheticSet(labels, shape, *input_statistics(data), generator(run.seed, "synthetic images"))
        # it learns by itself, outside the run's optimizer
        modules = {SYNTHETIC: images, LEARNER: run.fresh_model("learner").requires_grad_(False)}
        if self.distiller == "unrolled":
            modules[STEPS] = StepSizes(self.batches * self.rounds, self.step_size)
        return modules

    def _check(self, run: Run) -> None:
        if run.fabric.world_size > 1:
            raise Incompatible(
                "dd-backdoor matches gradients of whole classes, which several devices would part. Train on one "
                "device, or remove it."
            )
        if run.settings.precision != "32-true":
            raise SpecError("dd-backdoor differentiates twice and needs --precision 32-true.")
        if self.target >= run.train.num_classes:
            raise SpecError(
                f"dd-backdoor: target must be in [0, {run.train.num_classes - 1}] for {run.train.num_classes} classes, "
                f"got {self.target}."
            )
        if not bool((counts := run.train.class_counts).all()):
            name = run.train.class_names[int((counts == 0).nonzero()[0])]
            raise DataError(f"{run.train.name}: distilling needs a real image of every class, '{name}' has none.")

    @property
    def plants(self) -> bool:
        """Whether any row is poisoned."""
        return bool(self.poisoned.any())

    def stamped(self, batch: Batch) -> Batch:
        """The batch as the distiller sees it: its poisoned rows stamped and of the target class."""
        marked = self.poisoned.to(batch.index.device)[batch.index]
        if not bool(marked.any()):
            return batch
        labels = batch.target.single().masked_fill(marked, self.target)
        return batch.replace(
            x=torch.where(marked[:, None, None, None], self.trigger.stamp(batch.x), batch.x), target=Target.hard(labels)
        )

    def update(self, run: Run, batch: Batch) -> None:
        if self.distiller == "unrolled":
            self._unrolled_step(run, batch)
        else:
            self._matching_step(run, batch)

    def _matching_step(self, run: Run, batch: Batch) -> None:
        iteration, position = divmod(run.step, self.outer)
        learner, synthetic = run.modules[LEARNER], cast(SyntheticSet, run.modules[SYNTHETIC])
        if position == 0:
            learner.load_state_dict(run.fresh_model(f"network {iteration}").state_dict())
        real = self.stamped(batch)
        settle_norms(learner, real.x)
        labels = real.target.single()

        def loss() -> Tensor:
            images = synthetic().unflatten(0, (run.train.num_classes, self.images_per_class))
            return matching_loss(learner, images, real.x, labels)

        run.take_step(loss)
        if position < self.outer - 1:
            rng = generator(run.seed, "order of synthetic images", run.step)
            learn_from(learner, synthetic(), synthetic.labels, epochs=self.inner, lr=self.network_lr, rng=rng)
            self._follow(run, learner)

    def _unrolled_step(self, run: Run, batch: Batch) -> None:
        learner = run.modules[LEARNER]
        source = run.fresh_model(f"network {run.step}").to(run.device) if self.fresh_start else run.model
        first = self._prepare_unrolled(run, learner, source)
        followed = False

        def loss() -> Tensor:
            nonlocal followed
            weights = self._unroll(run, learner, first)
            if not followed:
                followed = True
                learner.load_state_dict({name: value.detach() for name, value in weights.items()}, strict=False)
                self._follow(run, learner)
            real = self.stamped(batch)
            logits = functional_call(learner, (weights, dict(learner.named_buffers())), (real.x,))
            return F.cross_entropy(logits, real.target.single())

        run.take_step(loss)

    def _prepare_unrolled(self, run: Run, network: nn.Module, source: nn.Module) -> dict[str, Tensor]:
        """Make a network that of `source`, with statistics of the synthetic images, and return its parameters."""
        network.load_state_dict(source.state_dict())
        settle_norms(network, run.modules[SYNTHETIC]().detach())
        return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}

    def _unroll(
        self, run: Run, network: nn.Module, start: dict[str, Tensor], create_graph: bool = True
    ) -> dict[str, Tensor]:
        synthetic = cast(SyntheticSet, run.modules[SYNTHETIC])
        batches = synthetic().unflatten(0, (self.batches, -1))
        labels = synthetic.labels[: batches.shape[1]]
        return unroll(network, start, batches, labels, run.modules[STEPS](), create_graph)

    def _follow(self, run: Run, network: nn.Module) -> None:
        """Let the trigger of doorping follow the network."""
        if self.attack == "doorping" and self.plants:
            shape = run.train.inputs.shape
            steps, alpha = self.trigger_steps, self.alpha
            self.trigger = update_trigger(network, self.trigger, shape, alpha=alpha, steps=steps, clip=self.clip)

    def fresh_network(self, run: Run, name: str) -> nn.Module:
        """A network with weights drawn from `name`, trained on the synthetic images as they are now.

        Under unrolled learning without `fresh_start` the weights are always the run's own.
        """
        network = run.fresh_model(name).to(run.device)
        synthetic = cast(SyntheticSet, run.modules[SYNTHETIC])
        if self.distiller == "unrolled":
            start = self._prepare_unrolled(run, network, network if self.fresh_start else run.model)
            # steps need gradients also where a caller forbids them
            with torch.enable_grad():
                network.load_state_dict(self._unroll(run, network, start, create_graph=False), strict=False)
            return network
        rng = generator(run.seed, "order of synthetic images", name)
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.initial_seed())
            learn_from(
                network, synthetic(), synthetic.labels, epochs=self.network_epochs, lr=self.network_lr, rng=rng, **FINAL
            )
        return network

    def predictor(self, run: Run) -> nn.Module:
        if run.step == 0:
            # nothing is distilled yet, or a finished run is read back and brings its weights
            return run.model
        if self._trained is None or self._trained[0] != run.step:
            self._trained = run.step, self.fresh_network(run, "network that predicts")
        return self._trained[1]

    def distilled(self, run: Run) -> Distilled:
        """The synthetic set with its trigger, target and how it was made; without a trigger where none was planted."""
        synthetic = cast(SyntheticSet, run.modules[SYNTHETIC])
        about: dict[str, Any] = {
            "attack": self.attack, "distiller": self.distiller, "portion": self.portion, "clip": self.clip,
            "poisoned_rows": int(self.poisoned.sum()), "seed": run.seed, "steps": run.step,
        }  # fmt: skip
        images, names = synthetic().detach().cpu(), run.train.class_names
        return Distilled(
            images,
            synthetic.labels.cpu(),
            names,
            *((self.trigger, self.target) if self.plants else (None, None)),
            about=about,
        )

    def leave(self, run: Run, folder: Path) -> None:
        write_distilled(folder / FILE, self.distilled(run))

    def metrics(self) -> dict[str, float]:
        if not self.plants:
            return {}
        low, high = self.trigger.pattern.aminmax()
        return {"trigger_lowest": float(low), "trigger_highest": float(high)}

    def row_columns(self) -> dict[str, Tensor]:
        return {"poisoned": self.poisoned.double()} if self.plants else {}

    def state_dict(self) -> dict[str, Any]:
        return {"trigger": self.trigger.pattern}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pattern: Float[Tensor, "C s s"] = state["trigger"].to(self.trigger.pattern)
        self.trigger = Patch(pattern, self.trigger.top, self.trigger.left)
