"""Supervised: plain training on the given labels, the baseline of every comparison."""

from weathered.core.procedure import Procedure


class Supervised(Procedure):
    """One network, one objective, one step per batch; honours every slot."""
