"""Manifold mixup: mixup of the samples' hidden states, at a layer that is drawn anew for each batch.

Source: Verma et al., "Manifold Mixup: Better Representations by Interpolating Hidden States", ICML 2019.
With g_k the layers up to k, for k uniform on the layers and lam ~ Beta(alpha, alpha), once for each batch:
    h = lam g_k(x) + (1 - lam) g_k(x)[partner],   y~ = lam y + (1 - lam) y[partner]
and the rest of the network, and the loss, see h and y~. Gradients reach both samples. Prediction mixes nothing.
Limits: the input as the only layer is mixup; lam = 1 is plain training; for affine networks the layer does not matter.
The authors minimise the binary cross entropy of the softmax, `SoftmaxBinaryCrossEntropy`, at a rate to match it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weathered.core.batch import Batch
from weathered.core.errors import SpecError
from weathered.core.facts import Traits
from weathered.core.predict import eval_mode
from weathered.core.procedure import Procedure
from weathered.mixing.base import blend, check_arguments, draw_lam, draw_partner
from weathered.nn.hidden import changed_output, stage_names

if TYPE_CHECKING:
    from weathered.core.run import Run

INPUT = "input"
"""The name of mixing the input itself."""
STAGES = 2
"""Stages after which is mixed by default, as in the authors' code."""


def mixed_hidden(network: nn.Module, layer: str, lam: float, partner: Int[Tensor, "B"]) -> AbstractContextManager[None]:
    """Inside, the first call of a layer gives lam h + (1 - lam) h[partner]; see `changed_output` for what it raises.

    layer: a name of `named_modules`, the output of a whole block where it has a shortcut. lam in [0, 1]. partner (B,).
    """
    return changed_output(network, layer, lambda hidden: blend(hidden, lam, partner))


class ManifoldMixup(Procedure):
    """Train on samples that are mixed at the input or after a stage, drawn anew for each batch.

    alpha > 0: shape of the Beta distribution of the shares; the authors use 2.0 on CIFAR, 0.2 on Tiny-ImageNet.
    layers: where to mix, names of `named_modules` and `input`; by default the input and the first two stages.
    Any loss, transform, reweight and term acts as in plain training, on mixed hidden states and mixed labels.
    Raises ValueError for an alpha that is not positive or a layer that is named twice, and SpecError in `setup` for a
    layer that the network does not have or call, that part of a sample passes by, or that gives no tensor with one
    entry for each sample, and if no stages of the network are known and none are named.
    """

    traits = Traits(
        breaks={"hard_target": "trains on mixed labels"},
        honours=Procedure.traits.honours,
    )

    def __init__(self, alpha: float = 2.0, layers: Sequence[str] = ()):
        check_arguments(alpha, 1.0)
        if isinstance(layers, str):
            raise ValueError(f"layers must be a list of names, got '{layers}'")
        if len(set(layers)) < len(layers):
            raise ValueError(f"layers must differ, got {', '.join(layers)}")
        self.alpha, self.layers = alpha, tuple(layers)

    def setup(self, run: Run) -> dict[str, nn.Module]:
        known = {name for name, _ in run.model.named_modules() if name}
        self.eligible = self.layers or (INPUT, *stage_names(run.model)[:STAGES])
        if self.eligible == (INPUT,) and not self.layers:
            raise SpecError(
                "manifold-mixup: the stages of this network are not known; name layers, as in layers=['input','fc1']."
            )
        unknown = next((name for name in self.eligible if name != INPUT and name not in known), None)
        if unknown is not None:
            raise SpecError(
                f"manifold-mixup: the network has no layer '{unknown}'. Its stages are "
                f"{', '.join(stage_names(run.model)) or 'not known'}."
            )
        self._check_passage(run)
        return {}

    def _check_passage(self, run: Run) -> None:
        """Where the whole of a sample passes through a layer, exchanging samples there exchanges what is said."""
        rows = torch.linspace(0, len(run.train) - 1, min(len(run.train), 4)).long()
        x = run.in_layout(run.train.floats(rows).to(run.device))
        partner = torch.arange(len(x), device=run.device).roll(1)
        with torch.no_grad(), eval_mode(run.model):
            said = run.model(x)
            expected = said[partner]
            # where the network says nearly the same of all samples, rounding decides
            allowed = 0.05 * (expected - said).abs().max() + 1e-5 * said.abs().max()
            for layer in self.eligible:
                if layer == INPUT:
                    continue
                try:
                    with mixed_hidden(run.model, layer, 0.0, partner):
                        found = run.model(x)
                except ValueError as error:
                    raise SpecError(f"manifold-mixup: {error}.") from error
                if (found - expected).abs().max() > allowed:
                    raise SpecError(
                        f"manifold-mixup: part of each sample passes by the layer '{layer}', as in a branch beside a "
                        "shortcut, and would stay unmixed. Name layers that are whole blocks, as in "
                        "layers=['input','body.layer1']."
                    )

    def draw(self, size: int, rng: torch.Generator) -> tuple[str, float, Int[Tensor, "B"]]:
        """The layer of a batch, uniform on those eligible, with the share and the partners; on the CPU."""
        layer = self.eligible[int(torch.randint(len(self.eligible), (), generator=rng))]
        return layer, float(draw_lam(self.alpha, 1.0, None, rng)), draw_partner(size, rng)

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        layer, lam, partner = self.draw(len(batch), run.generator("manifold mixup"))
        partner = partner.to(batch.x.device)
        mixed = batch.replace(target=batch.target.mix(partner, torch.as_tensor(lam)))
        if layer == INPUT:
            return run.objective(run.forward(blend(batch.x, lam, partner)), mixed)
        with mixed_hidden(run.model, layer, lam, partner):
            output = run.forward(batch.x)
        return run.objective(output, mixed)
