"""A network of C classes with one more logit on the same features, such as for abstention or for outliers."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weathered.core.predict import eval_mode


class WidenedNetwork(nn.Module):
    """A network of C classes that behaves like it, beside one more logit; a method names the layer in `extra_layer`.

    network: with forward_features, forward_head and get_classifier. Calling it gives the C logits, so that accuracy
    and every audit are those of the classes.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    @property
    def extra_layer(self) -> nn.Module:
        """The layer of the additional logit, (B, D) -> (B, 1)."""
        raise NotImplementedError(f"{type(self).__name__} names no layer for its additional logit")

    def forward_features(self, x: Tensor) -> Tensor:
        return cast(Any, self.network).forward_features(x)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return cast(Any, self.network).forward_head(features, pre_logits=pre_logits)

    def get_classifier(self) -> nn.Module:
        return cast(Any, self.network).get_classifier()

    def forward(self, x: Tensor) -> Float[Tensor, "B C"]:
        return self.network(x)

    def all_logits(self, x: Tensor) -> Float[Tensor, "B C+1"]:
        """The logits of the classes, and the additional one last, in float32."""
        pooled = self.forward_head(self.forward_features(x), pre_logits=True)
        return torch.cat([self.get_classifier()(pooled), self.extra_layer(pooled)], 1).float()


def layer_on_features(network: nn.Module, x: Tensor) -> nn.Linear:
    """A new linear layer (B, D) -> (B, 1) on the features that the network has for inputs like `x`."""
    timm_like = cast(Any, network)
    with torch.no_grad(), eval_mode(network):
        return nn.Linear(timm_like.forward_head(timm_like.forward_features(x), pre_logits=True).shape[1], 1)
