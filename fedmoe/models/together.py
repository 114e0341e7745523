"""A resident model with the adapters of several clients, whose batches pass it together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedmoe.models.packed import Packed, packed_states, register
from fedmoe.models.shared_pass import SharedPass, by_client, stacked

if TYPE_CHECKING:
    from fedmoe.adapter import Layout
    from fedmoe.models.adapted import AdaptedModel
    from fedmoe.models.tasks import TaskBatch


class Together:
    """Clients side by side in one model, each at a place from 0 on.

    Until another adapter is loaded the model computes with these alone.
    """

    def __init__(self, model: AdaptedModel, layout: Layout, top_ks: Sequence[int]) -> None:
        """Make room for adapters of a layout, of expert and linear factors alone.

        Args:
            model: gets the largest budget, and no rescaling.
            layout: of each client's adapter.
            top_ks: each client's experts per token.
        """
        register()
        self.model, self.layout, self.top_ks = model, layout, top_ks
        self.number = len(top_ks)
        model.bind(stacked(layout, self.number))
        model.set_budget(max(top_ks), torch.ones(len(model.layers), self.number))

    def load(self, values: Tensor) -> None:
        """Put the clients' values (clients, values) into the model."""
        for entry, there in by_client(self.layout, self.model.flat, self.number):
            there.copy_(values[:, entry.start : entry.stop].view(there.shape))

    def take_gradients(self, into: Tensor) -> None:
        """Copy the clients' gradients into `into` (clients, values), and begin new ones."""
        for entry, there in by_client(self.layout, self.model.grad, self.number):
            into[:, entry.start : entry.stop].view(there.shape).copy_(there)
        self.model.grad.zero_()

    def target_states(self, batches: Mapping[int, TaskBatch]) -> Sequence[Tensor]:
        """Return the hidden states (targets, hidden) behind each batch's targets, in order.

        `batches` are by their clients' places; who has none is left out of the pass.
        """
        device = self.model.device
        # A GPU starts kernels more slowly than it computes padding.
        packed = Packed.of(batches, device, even=device.type == "cuda")
        with self._sharing(packed):
            states = packed_states(self.model.model, packed)
        sizes = [len(batch.positions) for batch in batches.values()]
        return states[packed.positions].split(sizes)

    def by_client(self, counts: Tensor) -> Tensor:
        """Return routed tokens (clients, layers, experts) of what `AdaptedModel.counting` gives."""
        return counts.unflatten(1, (-1, self.number)).movedim(2, 0).contiguous()

    @contextmanager
    def _sharing(self, packed: Packed) -> Iterator[None]:
        model, shared = self.model, SharedPass(packed.sizes(self.number), self.model.device)
        for state in model.states:
            state.shared, state.valid = shared, packed.valid
        for linear in model.linears.values():
            linear.shared = shared
        mixed = model.layers if len({*self.top_ks}) > 1 else []
        choose = partial(shared.choose_apart, self.top_ks)
        hooks = [layer.router.register_forward_hook(choose) for layer in mixed]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for state in model.states:
                state.shared = state.valid = None
            for linear in model.linears.values():
                linear.shared = None
