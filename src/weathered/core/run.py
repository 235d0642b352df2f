"""Run: one model, one data set and the parts that fill the slots, with the services parts may use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weathered.core import distributed
from weathered.core.auxiliary import auxiliary_inputs, check_shapes
from weathered.core.batch import Batch
from weathered.core.decay import biases_and_norms
from weathered.core.draws import weighted_rows
from weathered.core.errors import DataError, NonFinite, SpecError, Unused
from weathered.core.facts import check, check_trainable, name_of, traits_of
from weathered.core.objective import keywords_of, logits_for_test, losses_of
from weathered.core.pixels import MASK, pixel_logits
from weathered.core.precision import warn_if_emulated
from weathered.core.preparation import prepared
from weathered.core.procedure import Procedure
from weathered.core.rng import derive_seed, generator
from weathered.core.roles import Loss, Output, Part, Reweight, Sampler, Stepper, Term, Transform
from weathered.core.run_state import restore, state_of
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.losses.cross_entropy import CrossEntropy
from weathered.nn.network import fresh_copy, model_facts, seeded
from weathered.steppers.plain import Plain

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Run:
    """Everything a training step needs.

    model: a network, or a function seed -> network. train: the training data. procedure: what a step does.
    loss, transforms, reweight, terms, sampler, stepper: the parts; see `core.roles`. probe: a part that watches
    training from its `before_epoch` and changes nothing.
    validation: data that parts may read during training. aux: named auxiliary data, as in {"ood": dataset}.
    settings: length, optimizer, seed. fabric: devices and precision; one device by default, a GPU if there is one.
    Raises Incompatible before the first batch if the parts do not fit together, the data or the model.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[int], nn.Module],
        train: Dataset,
        *,
        procedure: Procedure | None = None,
        loss: Loss | None = None,
        transforms: Sequence[Transform] = (),
        reweight: Reweight | None = None,
        terms: Sequence[Term] = (),
        sampler: Sampler | None = None,
        stepper: Stepper | None = None,
        probe: Part | None = None,
        validation: Dataset | None = None,
        aux: Mapping[str, Dataset] | None = None,
        settings: Settings | None = None,
        fabric: Fabric | None = None,
    ):
        self.train, self.validation, self.aux_data = train, validation, dict(aux or {})
        self.settings = settings or Settings()
        self.procedure = procedure or Procedure()
        self.loss_part: Loss = loss or CrossEntropy()
        self.transforms, self.terms = tuple(transforms), tuple(terms)
        self.reweight, self.sampler, self.probe = reweight, sampler, probe
        self.stepper: Stepper = stepper or Plain()
        self.fabric = fabric or _one_device(self.settings.precision)
        warn_if_emulated(self.settings.precision, self.fabric.device)
        self._given_model = model
        self.model = model if isinstance(model, nn.Module) else model(derive_seed(self.seed, "model"))

        single = {"sampler": sampler, "loss": loss, "reweight": reweight, "stepper": stepper}
        self.parts: list[tuple[str, object]] = [
            *((slot, part) for slot, part in single.items() if part is not None),
            *(("transform", part) for part in self.transforms),
            *(("term", part) for part in self.terms),
        ]
        check(self.facts, self.parts, self.procedure)
        check_trainable(self.facts, self.procedure)
        if probe is not None:
            # the engine calls it, whatever the procedure honours, so its needs alone are checked
            check(self.facts, (), probe)
            self.parts.append(("probe", probe))
        # captions are learned from without classes
        least = 1 if "caption_loss" in traits_of(self.procedure).provides else 2
        if len(train) < 2 or train.num_classes < least:
            raise DataError(
                f"{train.name}: training needs 2 samples of 2 classes, got {len(train)} of {train.num_classes}."
                f"{' Captions are learned from with --use contrastive.' if train.is_captioned else ''}"
            )
        check_shapes(train, self.aux_data)
        if self.settings.batch_size % self.fabric.world_size:
            raise SpecError(
                f"batch_size {self.settings.batch_size} must be a multiple of the {self.fabric.world_size} devices"
            )
        if self.settings.lr_samples is not None and len(train) < self.settings.batch_size:
            raise SpecError(
                f"the learning rate is scaled to batch_size {self.settings.batch_size}, but {train.name} has "
                f"{len(train)} training samples. Lower --batch-size, or leave linear-scaling out."
            )
        self.step, self.epoch_losses = 0, torch.zeros(2, dtype=torch.float64)
        self._steps_taken = 0
        self.task_loss: Tensor | None = None
        self.used: Counter[int] = Counter()
        self._generators: dict[tuple[str, str], torch.Generator] = {}
        self._place(self.model)
        with seeded(derive_seed(self.seed, "procedure")):
            self.modules = self.procedure.setup(self)
        for module in self.modules.values():
            self._place(module)
        trained = [p for m in (self.model, *self.modules.values()) for p in m.parameters() if p.requires_grad]
        self.parameters = list(dict.fromkeys(trained))
        distributed.broadcast_weights(self.fabric, [self.model, *self.modules.values()])
        spared = biases_and_norms([self.model, *self.modules.values()]) if self.settings.no_bias_decay else ()
        self.optimizer = self.settings.build_optimizer(self.parameters, spared)

    def _place(self, module: nn.Module) -> None:
        module.to(self.device)
        if self.settings.channels_last:
            cast(Any, module).to(memory_format=torch.channels_last)

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    @property
    def facts(self) -> set[str]:
        """What data and model provide to parts."""
        named = {f"aux:{name}" for name in self.aux_data} | ({"aux"} if self.aux_data else set())
        return self.train.facts | model_facts(self.model) | named | ({"validation"} if self.validation else set())

    @property
    def batch_size(self) -> int:
        """Samples per step over all devices; smaller than asked when the data are."""
        size = min(self.settings.batch_size, len(self.train))
        return size - size % self.fabric.world_size

    @property
    def steps_per_epoch(self) -> int:
        return max(len(self.train) // self.batch_size, 1)

    @property
    def total_steps(self) -> int:
        return self.settings.epochs * self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Share of training done, in [0, 1]."""
        return self.step / self.total_steps

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 0."""
        return self.step // self.steps_per_epoch

    def generator(self, name: str, device: torch.device | str = "cpu", shared: bool = False) -> torch.Generator:
        """The generator of this name in this step: the same draws whenever the step is repeated.

        shared: the same on all processes, otherwise each has its own.
        """
        key = (name, f"{device}{shared}")
        if key not in self._generators:
            rank = -1 if shared else self.fabric.global_rank
            self._generators[key] = generator(self.seed, name, rank, self.step, device=device)
        return self._generators[key]

    def begin_step(self) -> None:
        """Reset all draws to those of the current step."""
        self._steps_taken = 0
        self._reset_draws()

    def _reset_draws(self) -> None:
        """The draws of the current step, those of layers as they are in the present call of `take_step`."""
        self._generators.clear()
        later = (self._steps_taken,) if self._steps_taken else ()
        seed = derive_seed(self.seed, "layers", self.fabric.global_rank, self.step, *later)
        if self.device.type == "cpu":
            # torch.manual_seed also tells devices that are not there, which takes as long as a small network's pass
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def fresh_model(self, name: str) -> nn.Module:
        """A second network of the same architecture, with weights drawn from `name`."""
        return fresh_copy(self._given_model, self.model, derive_seed(self.seed, name))

    def prepare(self, x: Tensor, labels: Tensor, index: Tensor) -> Batch:
        """A batch on the device with all transforms applied; images become floats before the first that needs it."""
        return prepared(self, x, labels, index)

    def in_layout(self, x: Tensor) -> Tensor:
        """Images in the memory layout of the run."""
        images = self.settings.channels_last and x.ndim == 4
        return x.contiguous(memory_format=torch.channels_last) if images else x

    def aux(self, name: str, size: int) -> Tensor:
        """This process's share of `size` inputs of the auxiliary data `name`, augmented, floats on the device."""
        return auxiliary_inputs(self, name, size)

    def forward(self, x: Tensor, model: nn.Module | None = None) -> Output:
        """Logits in float32, and features if the loss or a term asks for them. model: the run's own by default."""
        network = self.model if model is None else model
        wants = any("features" in traits_of(p).needs for p in (self.loss_part, *self.terms))
        with self.autocast():
            if not wants:
                return Output(network(x).float())
            timm_like = cast(Any, network)
            features = timm_like.forward_head(timm_like.forward_features(x), pre_logits=True)
            return Output(timm_like.get_classifier()(features).float(), features.float())

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The precision of the run, for forward passes."""
        with self.fabric.autocast():
            yield

    def losses(self, output: Output, batch: Batch) -> Float[Tensor, "B"]:
        """Losses of the run's loss part for each sample, or each labelled pixel, before weights and terms."""
        self.used[id(self.loss_part)] += 1
        logits = pixel_logits(output.logits, batch.extra[MASK]) if MASK in batch.extra else output.logits
        return losses_of(self.loss_part, logits, batch.target, **keywords_of(self.loss_part, output, batch))

    def weights(self, losses: Float[Tensor, "B"], target: Target) -> Float[Tensor, "B"] | None:
        """The reweight part's word on a batch, gathered over devices where it looks across the batch; None without."""
        if self.reweight is None:
            return None
        self.used[id(self.reweight)] += 1
        detached = losses.detach()
        # processes have different numbers of labelled pixels, so each weights its own
        if not traits_of(self.reweight).batchwise or self.train.is_segmentation:
            return self.reweight(detached, target, self.progress)
        everyone = distributed.gather(self.fabric, detached)
        weights = self.reweight(everyone, distributed.gather_target(self.fabric, target), self.progress)
        return distributed.local(self.fabric, weights)

    def objective(self, output: Output, batch: Batch) -> Float[Tensor, ""]:
        """Mean of weighted losses plus the terms: what plain training minimises."""
        losses = self.losses(output, batch)
        self.check_finite(losses)
        weights = self.weights(losses, batch.target)
        weighted = losses if weights is None else weights * losses
        total = _mean(weighted)
        for term in self.terms:
            self.used[id(term)] += 1
            total = total + _mean(term(self, batch, output))
        return total

    def take_step(self, closure: Callable[[], Tensor]) -> None:
        """Let the stepper take one step on the closure's loss, and record it, or the part of it set as `task_loss`.

        Each call within a training step has draws of its own in layers such as dropout; generators start again.
        """
        self.used[id(self.stepper)] += 1
        self.task_loss = None

        def replay() -> Tensor:
            self._reset_draws()
            return closure()

        loss = self.stepper.step(self, replay)
        self._steps_taken += 1
        recorded = loss if self.task_loss is None else self.task_loss
        self.epoch_losses += torch.tensor([float(recorded), 1.0], dtype=torch.float64)

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Gradients of a finite loss, averaged over devices; raises NonFinite before anything is changed."""
        self.check_finite(loss)
        self.fabric.backward(loss)
        distributed.average_gradients(self.fabric, self.parameters)

    def check_finite(self, values: Tensor) -> None:
        """Raise NonFinite, naming step and parts, if a loss is NaN or infinite."""
        values = values.detach().flatten()
        bad = values[~torch.isfinite(values)]
        if distributed.any_process(self.fabric, len(bad) > 0):
            where = "" if len(bad) else " on another process"
            transforms = ", ".join(name_of(part) for part in self.transforms) or "none"
            raise NonFinite(
                f"the loss is {float(bad[0]) if len(bad) else 'not finite'}{where} at step {self.step} "
                f"(epoch {self.epoch + 1}) with {name_of(self.procedure)}, {name_of(self.loss_part)}, transforms: "
                f"{transforms}. Lower --lr (it is {self.settings.peak_lr:g} at its peak) or check the data."
            )

    def check_used(self) -> None:
        """Raise Unused if a part that was given has not been called; meant for after the first step."""
        for slot, part in self.parts:
            if not self.used[id(part)]:
                raise Unused(
                    f"{name_of(part)} was given as '{slot}' but {name_of(self.procedure)} did not call it in the "
                    f"first step. Remove it, or use a procedure that does."
                )

    def gather(self, tensor: Tensor) -> Tensor:
        """A batch tensor of all devices, in the order of ranks, without gradient."""
        return distributed.gather(self.fabric, tensor)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on bit for bit; with several processes all must ask."""
        return state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; raises CheckpointError if it is the state of another number of devices."""
        restore(self, state)

    def test_logits(self, logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """Logits whose softmax is the model's probability under the run's loss."""
        return logits_for_test(self.loss_part, logits)

    @torch.no_grad()
    def predict(self, dataset: Dataset, batch_size: int = 1024) -> Float[Tensor, "N C"]:
        """Test-time logits of the procedure's predictor on a data set, (N, C) float32 on the CPU."""
        from weathered.core.predict import predict_logits

        return self.test_logits(predict_logits(self.procedure.predictor(self), dataset, batch_size, self))

    def order(self, epoch: int) -> Int[Tensor, "N"]:
        """The rows of an epoch in order: a permutation, or draws with the sampler's weights."""
        rng = generator(self.seed, "order", epoch)
        if self.sampler is None:
            return torch.randperm(len(self.train), generator=rng)
        self.used[id(self.sampler)] += 1
        weights = self.sampler.weights(self.train.labels, epoch / self.settings.epochs)
        return weighted_rows(weights, len(self.train), rng)


def _mean(values: Tensor) -> Float[Tensor, ""]:
    # images without a labelled pixel leave nothing to average
    return values.mean() if values.numel() else values.sum()


def _one_device(precision: str) -> Fabric:
    from lightning_fabric import Fabric

    return Fabric(accelerator="auto", devices=1, precision=cast(Any, precision))
