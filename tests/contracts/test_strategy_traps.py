"""The errors found in published code, planted: the conformance suite catches each of them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

import conformance as c
import conformance_sent as sent
import pytest
import torch

from fedmoe.adapter import Adapter, Layout, resized
from fedmoe.aggregation import FedAvg, FedBuff
from fedmoe.aggregation.fedex_lora import FedExLoRA
from fedmoe.aggregation.fedprox import FedProx
from fedmoe.aggregation.fedsa_lora import FedSALoRA
from fedmoe.aggregation.ffa_lora import FFALoRA
from fedmoe.aggregation.flame import Flame
from fedmoe.aggregation.flexlora import FlexLoRA
from fedmoe.aggregation.flora import FLoRA
from fedmoe.aggregation.flux import FLUX
from fedmoe.aggregation.hfedmoe import HFedMoE
from fedmoe.aggregation.products import pairs
from fedmoe.aggregation.raflora import RaFLoRA
from fedmoe.aggregation.strategy import Layouts, Local
from fedmoe.aggregation.streaming import Weights
from fedmoe.aggregation.ub_smoe import UBSMoE
from fedmoe.messages.records import Task, Update


class OnlyTheFirst(FedAvg):
    """Returns client 0's update."""

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        return super().combine(adapter, [next(iter(updates))], num_clients)


class Transposed(FedExLoRA):
    """Adds the residual of the square weights with its sides exchanged."""

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        new = super().combine(adapter, updates, num_clients)
        for pair in pairs(new.layout):
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


class Clamped(FedAvg):
    """Cuts values off, and yet claims to be linear."""

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        small = (
            replace(u, delta=Adapter(u.delta.layout, u.delta.flat.clamp(-0.1, 0.1)))
            for u in updates
        )
        return super().combine(adapter, small, num_clients)


class FirstTwice(FedAvg):
    """Counts a client twice, which no client could know of itself."""

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        held = list(updates)
        return super().combine(adapter, [held[0], *held], num_clients)


class Impatient(FedBuff):
    """Values an update the more, the later it is."""

    def discount(self, update: Update, staleness: int) -> Update:
        return replace(update, delta=update.delta + super().discount(update, staleness).delta)


class Turns(FFALoRA):
    """Sends other tensors in every second round."""

    def layouts(self, plain: Layout, round: int) -> Layouts:
        layouts = super().layouts(plain, round)
        return layouts if round % 2 else replace(layouts, update=layouts.update.only("B"))


class Forgetful(FedSALoRA):
    """Starts every round without the part that the client kept."""

    def local(
        self, task: Task, layouts: Layouts, initial: Adapter, own: Adapter | None = None
    ) -> Local:
        return super().local(task, layouts, initial, None)


class Hidden(FedProx):
    """Changes gradients without saying so."""

    corrects: ClassVar[bool] = False


class Quiet(UBSMoE):
    """Changes what routers choose without saying so."""

    changes_routers: ClassVar[bool] = False


def by_usage(update: Update) -> Weights:
    return Weights((update.counts > 0).double() * update.examples, update.examples)


class UsersLearn(HFedMoE):
    """Takes usage for an update."""

    def weigh(self, update: Update) -> Weights:
        return by_usage(update)


class UsersTune(FLUX):
    """The same."""

    def weigh(self, update: Update) -> Weights:
        return by_usage(update)


TRAPS = [
    (OnlyTheFirst(), c.check_every_client_counts),
    (OnlyTheFirst(), c.check_order),
    (Transposed(merged_rank=64), c.check_exact),
    (Unweighted(), c.check_size),
    (NoScale(), sent.check_mixed_ranks),
    (ByRank(), c.check_exact),
    (ByRankStacked(merged_rank=64), c.check_exact),
    (ByShape(), c.check_equal_updates),
    (Dead(), c.check_untouched),
    (Clamped(), c.check_linear),
    (FirstTwice(), c.check_maskable),
    (Impatient(), c.check_discount),
    (Turns(), c.check_continues),
    (Forgetful(), c.check_personal),
    (Quiet(), c.check_routers),
    (Hidden(), c.check_corrects),
    (UsersLearn(), c.check_learners),
    (UsersTune(), c.check_learners),
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


def test_a_mean_of_factors_is_not_exact():
    """Or the check of exactness could not fail."""
    with pytest.raises(AssertionError, match="not close"):
        c.check_exact(FedAvg())
