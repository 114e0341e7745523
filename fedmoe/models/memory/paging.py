"""Pages of mapped experts: read before they are used, and given up when they were not for long."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmoe.models.memory.offload import give_up, read_soon

KEPT = 2
"""A layer's experts that stay in memory, in multiples of k: most of the last tokens' are chosen
again."""


class LayerPages:
    """The pages of one layer's experts.

    When the router has chosen, all that are not there are read at once, and with them those that
    the next layer's router would choose of this layer's input. Of each layer the `KEPT` k experts
    that were used last stay; a layer that is computing has all that its tokens chose. So a process
    has `KEPT` k experts of every layer and, while it reads a prompt, one layer's others. That binds
    its own memory: the system's cache of the file is beside it, as large as there is free memory.
    """

    def __init__(self, parts: Sequence[Tensor], scorer: nn.Module) -> None:
        self.parts, self.scorer = parts, scorer
        self.used: dict[int, None] = {}
        """Experts in memory, those that were used last at the end."""
        self.most = 0
        self.before = self.after = self

    def chosen(self, experts: Sequence[int], top_k: int, hidden: Tensor) -> None:
        """Prepare for the experts that this layer's router chose of `hidden` (tokens, hidden)."""
        self.before.trim()
        self.read(experts)
        self.most = KEPT * top_k
        for e in experts:
            self.used.pop(e, None)
            self.used[e] = None
        self.after.read(self.after.guess(hidden, top_k))

    @torch.no_grad()
    def guess(self, hidden: Tensor, top_k: int) -> list[int]:
        """Return the experts that this layer would choose if its input were `hidden`."""
        weight: Tensor = self.scorer.weight  # pyright: ignore[reportAssignmentType]
        best = F.linear(hidden.to(weight.dtype), weight).topk(top_k).indices
        return best.unique().tolist()

    def read(self, experts: Sequence[int]) -> None:
        """Have those read that are not in memory."""
        for e in experts:
            if e not in self.used:
                for part in self.parts:
                    read_soon(part[e])

    def trim(self) -> None:
        """Give up experts that were not used for long."""
        for e in [*self.used][: max(0, len(self.used) - self.most)]:
            del self.used[e]
            for part in self.parts:
                give_up(part[e])


def linked(layers: list[LayerPages]) -> list[LayerPages]:
    """Return the layers, each of which knows its neighbours; after the last comes the first."""
    for one, other in pairwise((*layers, layers[0])):
        one.after, other.before = other, one
    return layers
