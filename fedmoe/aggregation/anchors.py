"""Anchors: what a comparison is read against, from no training to all data in one place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedmoe.adapter import Adapter, Layout, keep_untouched, resized
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.strategy import Layouts, Local, Strategy
from fedmoe.messages.records import Task, Update
from fedmoe.section import section


@section
class ZeroRound(Strategy):
    """No training: the base model at every tier."""

    name: Literal["zero_round"] = "zero_round"
    trains: ClassVar[bool] = False
    steps: ClassVar[bool] = False

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        return adapter


@section
class LocalOnly(Strategy):
    """Every client trains by itself and nothing is shared; a tier scores its clients' mean.

    Clients still take part by turns, so that they train as often as in the other strategies.
    """

    name: Literal["local_only"] = "local_only"
    personal: ClassVar[bool] = True
    steps: ClassVar[bool] = False
    mixed_ranks: ClassVar[bool] = True
    rescalings: ClassVar[tuple[str, ...]] = ("none", "static")

    def layouts(self, plain: Layout, round: int) -> Layouts:
        nothing = plain.only()
        return Layouts(task=nothing, model=plain, trained=plain, update=nothing, own=plain)

    def first_state(self, initial: Adapter) -> Adapter:
        return Adapter(initial.layout.only(), torch.empty(0))

    def send(self, state: Adapter, plain: Layout) -> Adapter:
        return Adapter(plain.only(), state.flat)

    def local(
        self, task: Task, layouts: Layouts, initial: Adapter, own: Adapter | None = None
    ) -> Local:
        start = initial if layouts.model == initial.layout else resized(initial, layouts.model)
        return KeepsAll(layouts, own or start)

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        for _ in updates:  # so that they are checked and written down
            pass
        return adapter


class KeepsAll(Local):
    """A client that keeps its adapter."""

    def finish(self, after: Adapter, counts: Tensor) -> Adapter:
        self.own = self.before + keep_untouched(after - self.before, counts)
        return Adapter(self.layouts.update, torch.empty(0))


@section
class Centralized(Mean):
    """One client holds all data and trains at full budget, as many steps as a round's clients."""

    name: Literal["centralized"] = "centralized"
    pooled: ClassVar[bool] = True
    rescalings: ClassVar[tuple[str, ...]] = ("none",)


@section
class FullBudget(Mean):
    """FedAvg whose clients all train with the model's K experts; tiers are scored as they are."""

    name: Literal["full_budget"] = "full_budget"
    full_budget: ClassVar[bool] = True
    rescalings: ClassVar[tuple[str, ...]] = ("none",)
