"""Means over clients of unlike ranks, one rank component at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from fedmoe.adapter import Adapter, Entry, resized
from fedmoe.aggregation.streaming import Weights
from fedmoe.errors import AggregationError
from fedmoe.messages.records import Update


class SliceSums:
    r"""Sums of deltas and of weights per rank component, as updates stream past.

    Deltas count at the scale of the state (see `adapter.resized`). A client counts for the
    components it holds, i < r_c, of the experts it has a weight for. Sums run in float64.
    """

    def __init__(self, state: Adapter) -> None:
        self.state = state
        layout = state.layout
        self.sums = [torch.zeros(e.shape, dtype=torch.float64) for e in layout.entries]
        self.totals: Float[Tensor, "rank owners"] = torch.zeros(
            layout.rank, layout.num_layers * layout.num_experts + 1, dtype=torch.float64
        )
        self.num_updates = 0

    def add(self, update: Update, weights: Weights) -> None:
        """Take one client in."""
        delta = resized(update.delta, self.state.layout)
        owners = torch.cat([weights.experts.flatten().double(), torch.tensor([weights.shared])])
        for (entry, view), total in zip(delta.layout.views(delta.flat), self.sums, strict=True):
            total += view * _column(owners, entry, self.state)
        self.totals[: update.delta.layout.rank] += owners
        self.num_updates += 1

    def held(self, entry: Entry) -> Tensor:
        """The summed weights of a tensor's components, shaped to divide its sum."""
        rows = [_column(total, entry, self.state) for total in self.totals]
        if entry.rank_axis is None:
            return rows[0]
        together = torch.stack([row[..., 0, 0] for row in rows], -1)
        return together.unsqueeze(-1 if entry.rank_axis == -2 else -2)


def slice_mean(
    state: Adapter, updates: Iterable[Update], weigh: Callable[[Update], Weights]
) -> Adapter:
    r"""`state` after every component moved by the mean of the clients that hold it.

    $$W_i \leftarrow W_i + \frac{\sum_{c:\, r_c > i} \gamma_c \Delta_{c,i}}
                                {\sum_{c:\, r_c > i} \gamma_c}$$

    A component that nobody held or trained stays bit-identical.

    Raises:
        AggregationError: there are no updates.
    """
    sums = SliceSums(state)
    for update in updates:
        sums.add(update, weigh(update))
    if not sums.num_updates:
        raise AggregationError("no client updates to average in this round")
    made = state.copy()
    for (entry, view), total in zip(made.layout.views(made.flat), sums.sums, strict=True):
        weight = sums.held(entry)
        mean = total / weight.where(weight > 0, 1)
        view.copy_(torch.where(weight > 0, view + mean, view.double()))
    return made


def _column(owners: Tensor, entry: Entry, state: Adapter) -> Tensor:
    """The weights of a tensor's experts, or of a shared tensor, shaped to multiply it."""
    if entry.layer is None:
        return owners[-1].reshape([1] * len(entry.shape))
    experts = state.layout.num_experts
    mine = owners[entry.layer * experts : (entry.layer + 1) * experts]
    return mine.reshape(-1, *[1] * (len(entry.shape) - 1))
