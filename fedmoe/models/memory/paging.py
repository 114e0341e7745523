"""Pages of mapped experts: read when the router has chosen, given up when they are not used.

The system reads a mapped file in small parts, each when it is touched. Told which experts are
chosen, it reads them all at once: from a disk, decoding is 1.6 to 2.3 times as fast, a prompt
2.5 to 3.7 times. Reading further ahead, what the next layer's router would choose of this layer's
input, gained nothing: of four experts three were right, and the other's bytes cost more.
See `simulations/benchmarks/inference.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from fedmoe.models.memory.offload import give_up, read_soon

KEPT = 2
"""Experts of a layer that stay in memory, in multiples of k: a text's tokens choose alike."""


class LayerPages:
    """The pages of one layer's experts.

    Of each layer the `KEPT` k experts that were used last stay in memory; one that is computing has
    all that its tokens chose. So a process has `KEPT` k experts of every layer and, while it reads
    a prompt, one layer's others. That bounds its own memory, and not the system's cache of the
    file, which takes what is free and gives it up when it is needed.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts
        self.used: dict[int, None] = {}
        """Experts in memory, those that were used last at the end."""
        self.most = 0
        self.before = self
        """The layer that computes before this one; before the first, the last."""

    def chosen(self, experts: Sequence[int], top_k: int) -> None:
        """Prepare for the experts that the layer's tokens chose, k each."""
        self.before.trim()
        self.most = KEPT * top_k
        for e in experts:
            if e not in self.used:
                for part in self.parts:
                    read_soon(part[e])
            self.used.pop(e, None)
            self.used[e] = None

    def trim(self) -> None:
        """Give up experts that were not used for long."""
        for e in [*self.used][: max(0, len(self.used) - self.most)]:
            del self.used[e]
            for part in self.parts:
                give_up(part[e])


def linked(layers: list[LayerPages]) -> list[LayerPages]:
    """Return the layers, each of which knows the one before it."""
    for one, other in pairwise((*layers, layers[0])):
        other.before = one
    return layers
