"""Adapters with a merged part: components that clients compute with and do not train.

The state of such a strategy has rank `merged_rank + R`: first the merged components, then the ones
that clients train. A base weight with a dense delta added would be a copy of the base per client.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from fedmoe.adapter import Adapter, Layout, components, place
from fedmoe.aggregation.mean import BySize
from fedmoe.aggregation.product_optimizer import step_products
from fedmoe.aggregation.products import Pair
from fedmoe.aggregation.server_optimizer import Memory, Rule
from fedmoe.aggregation.strategy import Layouts
from fedmoe.errors import Fault
from fedmoe.section import section


@section
class Merged(BySize):
    """Base of strategies with a merged part."""

    merged_rank: Annotated[int, Field(ge=1)] = 32
    """Components of the merged part. The sum of all rounds is kept exactly as long as its rank is
    not larger; beyond, as its best approximation."""

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield dropout, which takes the merged part for LoRA, and what traits rule out."""
        yield from super().faults(experiment, model)
        if experiment.adapter.dropout:
            said = f"would drop inputs of the merged part of {self.name!r}, too, which is the base"
            yield Fault("adapter.dropout", f"{said}'s in the source; use 0 or another strategy")

    def layouts(self, plain: Layout, round: int) -> Layouts:
        whole = self.whole(plain)
        return Layouts(task=whole, model=whole, trained=plain, update=plain)

    def whole(self, plain: Layout) -> Layout:
        """The layout with the merged components in front."""
        return plain.with_rank(self.merged_rank + plain.rank, plain.scale)

    def first_state(self, initial: Adapter) -> Adapter:
        layout = self.whole(initial.layout)
        state = Adapter(layout, torch.zeros(layout.size))
        place(initial, state, last=True)
        return state

    def start_layout(self, plain: Layout) -> Layout:
        """As the merged part: what clients train then starts afresh."""
        return plain.with_rank(self.merged_rank, plain.scale)

    def warm_state(self, initial: Adapter, start: Adapter) -> Adapter:
        state = self.first_state(initial)
        place(start, state)
        return state

    def send(self, state: Adapter, plain: Layout) -> Adapter:
        """The merged part at the client's scale, and the first of the fresh components."""
        layout = self.whole(plain)
        if layout == state.layout:
            return state
        sent, there = Adapter(layout, torch.zeros(layout.size)), state.views()
        for entry, view in layout.views(sent.flat):
            view.copy_(components(entry, there[entry.name], 0, layout.rank))
            if entry.kind == "B":
                view[..., : self.merged_rank] *= state.layout.scale / layout.scale
        return sent

    def start(self, state: Adapter, layout: Layout) -> Adapter:
        """Return the start of a client whose updates have this layout."""
        made, there = Adapter(layout, torch.zeros(layout.size)), state.views()
        for entry, view in layout.views(made.flat):
            view.copy_(components(entry, there[entry.name], self.merged_rank, layout.rank))
        return made

    def step(
        self, rule: Rule, old: Adapter, proposed: Adapter, memory: Memory
    ) -> tuple[Adapter, Memory]:
        """On the products of both parts; the merged part takes the step."""
        return step_products(rule, old, proposed, memory, free=self.merged_rank)

    def parts(self, views: dict[str, Tensor], pair: Pair) -> tuple[Tensor, Tensor]:
        """The merged components of both factors, as views of `A` and `B`."""
        return views[pair.A][..., : self.merged_rank, :], views[pair.B][..., : self.merged_rank]

    def fresh(self, views: dict[str, Tensor], pair: Pair) -> tuple[Tensor, Tensor]:
        """The trained components of both factors, as views of `A` and `B`."""
        return views[pair.A][..., self.merged_rank :, :], views[pair.B][..., self.merged_rank :]
