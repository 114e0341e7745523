"""The errors found in published code, planted: the conformance suite catches each of them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

import conformance as c
import pytest
import torch

from fedmoe.adapter import Adapter, resized
from fedmoe.aggregation import FedAvg
from fedmoe.aggregation.fedex_lora import FedExLoRA
from fedmoe.aggregation.flame import Flame
from fedmoe.aggregation.flexlora import FlexLoRA
from fedmoe.aggregation.flora import FLoRA
from fedmoe.aggregation.raflora import RaFLoRA
from fedmoe.aggregation.streaming import Weights
from fedmoe.messages.records import Update


class OnlyTheFirst(FedAvg):
    """Returns client 0's update."""

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        return super().combine(adapter, [next(iter(updates))], num_clients)


class Transposed(FedExLoRA):
    """Adds the residual of the square weights with its sides exchanged."""

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        new = super().combine(adapter, updates, num_clients)
        for pair in c_pairs(new):
            (a, b) = self.parts(new.views(), pair)
            if a.shape[-1] == b.shape[-2]:
                a_was = a.clone()
                a.copy_(b.mT)
                b.copy_(a_was.mT)
        return new


class Unweighted(FedAvg):
    """Averages where the text weights by data size."""

    def weigh(self, update: Update) -> Weights:
        return Weights(torch.ones_like(update.counts, dtype=torch.float64), 1.0)


class NoScale(FlexLoRA):
    """Averages raw BA of unlike ranks, without alpha / r."""

    mixed_ranks: ClassVar[bool] = True

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        def raw():
            for u in updates:
                after = resized(adapter, u.delta.layout) + u.delta
                ratio = adapter.layout.scale / u.delta.layout.scale
                flat = after.flat.clone()
                for entry, view in after.layout.views(flat):
                    if entry.kind == "B":
                        view *= ratio
                start = resized(adapter, u.delta.layout)
                yield replace(u, delta=Adapter(after.layout, flat - start.flat))

        return super().combine(adapter, raw(), num_clients)


class ByRank(FlexLoRA):
    """Lets a client count the more, the larger its rank is."""

    def size(self, update: Update) -> float:
        return super().size(update) * update.delta.layout.rank


class ByRankStacked(FLoRA):
    """The same, where factors are stacked."""

    def size(self, update: Update) -> float:
        return super().size(update) * update.delta.layout.rank


class ByShape(RaFLoRA):
    """Takes for `A` whatever has as many rows as the rank."""

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        new = super().combine(adapter, updates, num_clients)
        for entry, view in new.layout.views(new.flat):
            if entry.kind == "B" and entry.shape[-2] == adapter.layout.rank:
                view[..., 2:, :] = 0  # what it thinks are the rows that low ranks lack
        return new


class Dead(Flame):
    """Divides by a sum of weights that may be zero: an idle expert becomes NaN."""

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        held = list(updates)
        new = super().combine(adapter, held, num_clients).copy()
        used = sum(u.counts for u in held)
        for entry, view in new.layout.views(new.flat):
            if entry.layer is not None:
                weight = (used[entry.layer] > 0).float()
                view *= (weight / weight)[(..., *[None] * (view.dim() - 1))]
        return new


def c_pairs(adapter):
    from fedmoe.aggregation.products import pairs

    return pairs(adapter.layout)


TRAPS = [
    (OnlyTheFirst(), c.check_every_client_counts),
    (OnlyTheFirst(), c.check_order),
    (Transposed(merged_rank=64), c.check_exact),
    (Unweighted(), c.check_size),
    (NoScale(), c.check_mixed_ranks),
    (ByRank(), c.check_exact),
    (ByRankStacked(merged_rank=64), c.check_exact),
    (ByShape(), c.check_equal_updates),
    (Dead(), c.check_untouched),
]


@pytest.mark.parametrize(
    ("planted", "check"), TRAPS, ids=lambda x: getattr(x, "__name__", type(x).__name__)
)
def test_a_planted_error_is_caught(planted, check):
    with pytest.raises(AssertionError):
        check(planted)


@pytest.mark.parametrize(("planted", "check"), TRAPS, ids=lambda x: getattr(x, "__name__", ""))
def test_without_the_error_the_same_check_passes(planted, check):
    sound = type(planted).__mro__[1]
    check(c.made(sound))
