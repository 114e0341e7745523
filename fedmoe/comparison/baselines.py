"""Baselines: the experiments that strategies are read against, from no training to all data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedmoe.adapter import Adapter, Layout, keep_untouched, resized
from fedmoe.aggregation.strategy import Layouts, Local, Strategy
from fedmoe.budget import Levels, Tier
from fedmoe.comparison import arms
from fedmoe.config.schema import Experiment
from fedmoe.data.federated import Federated, LocalData
from fedmoe.data.partition import Iid
from fedmoe.errors import ConfigError, Fault
from fedmoe.messages.records import Task, Update
from fedmoe.section import section

Baseline = Literal[
    "zero_rounds",
    "alone",
    "all_data",
    "full_budget",
    "lower_rank",
    "equal_inference",
    "equal_flops",
]
ARMS: tuple[Baseline, ...] = ("lower_rank", "equal_inference", "equal_flops")
"""Those that are methods at another cost, and compete."""
Clients = Mapping[str, tuple[int | str, ...]]
"""By tier, the clients whose scores are those of the tier: by number, or by name if they have one.
"""


def scored(kind: Baseline, experiment: Experiment, full_top_k: int | None) -> Clients | None:
    """Return which tiers of a baseline's result count, and for which clients; None: as they are.

    Where clients train in a tier that was added for them, they are still scored at the k that they
    can afford, and so are the tiers' means: what is compared is the adapter, not the budget.
    """
    if kind not in ("all_data", "full_budget"):
        return None
    assert full_top_k is not None, kind
    e, tiers = experiment, dict.fromkeys(experiment.budget.resolved(full_top_k), ())
    if kind == "all_data":
        return tiers
    if isinstance(e.data, Federated):
        clients = LocalData(e.data).names
        assigned = {c: e.budget.tier_of(c, full_top_k, e.seed) for c in clients}
    else:
        assigned = dict(enumerate(e.budget.assign(e.partition.num_clients, full_top_k, e.seed)))
    return {tier: tuple(c for c, name in assigned.items() if name == tier) for tier in tiers}


def zero_rounds(experiment: Experiment, full_top_k: int | None) -> Experiment:
    """No training: the base model at every tier."""
    return replace(experiment, rounds=0)


def alone(experiment: Experiment, full_top_k: int | None) -> Experiment:
    """Every client trains by itself and nothing is shared; a tier scores its clients' mean."""
    return replace(experiment, aggregation=LocalOnly())


def all_data(experiment: Experiment, full_top_k: int | None) -> Experiment:
    """One client holds all data and trains at full budget, as many steps as a round's clients."""
    e = experiment
    if isinstance(e.data, Federated):
        said = "'federated' has no pooled form: each client holds its own rows; leave out all_data"
        raise ConfigError("baseline", [Fault("data.name", said)])
    number = min(e.clients_per_round or e.partition.num_clients, e.partition.num_clients)
    training = replace(e.training, steps=e.training.steps * number)
    if e.training.epochs is not None:  # over all rows, of which a round's clients have a part
        epochs = e.training.epochs * number / e.partition.num_clients
        training = replace(e.training, epochs=epochs)
    whole = replace(e, partition=Iid(num_clients=1), clients_per_round=None, training=training)
    return full_budget(whole, full_top_k)


def full_budget(experiment: Experiment, full_top_k: int | None) -> Experiment:
    """All clients train with all K experts, whatever their tier; tiers are scored as they are."""
    e = experiment
    faults = [*_faults(e, full_top_k)]
    if faults:
        raise ConfigError("baseline", faults)
    assert full_top_k is not None
    tiers = {
        name: replace(tier, share=0.0, clients=())
        for name, tier in e.budget.resolved(full_top_k).items()
    }
    most = max(tiers, key=lambda name: tiers[name].top_k)
    full = "full budget"
    tiers[full] = Tier(top_k=full_top_k, share=1.0)
    # An ideal fleet: every client has the best device, and is always there.
    devices = e.devices and e.devices | {full: replace(e.devices[most], availability=1.0)}
    made = replace(e, budget=Levels(tiers=tiers), devices=devices)
    if isinstance(e.data, Federated):  # else nobody would score at the tiers' own k
        made = replace(made, evaluation=replace(e.evaluation, every_tier=True))
    return made


def _faults(experiment: Experiment, full_top_k: int | None) -> Iterator[Fault]:
    """Yield why a tier of full budget cannot be added."""
    words = "its full budget", "a baseline of full budget"
    yield from arms.fixed_tiers(experiment, full_top_k, *words)
    if experiment.rescaling.learned:
        said = "learns a factor per tier, and no client trains in the tiers that are scored"
        yield Fault("rescaling.name", f"{experiment.rescaling.name!r} {said}; use 'none'")


BASELINES: Mapping[Baseline, Callable[[Experiment, int | None], Experiment]] = {
    "zero_rounds": zero_rounds,
    "alone": alone,
    "all_data": all_data,
    "full_budget": full_budget,
    "lower_rank": arms.lower_rank,
    "equal_inference": arms.equal_inference,
    "equal_flops": arms.equal_flops,
}


@section
class LocalOnly(Strategy):
    """Every client trains by itself and nothing is shared; a tier scores its clients' mean.

    Clients still take part by turns, so that they train as often as in the other strategies.
    """

    name: Literal["local_only"] = "local_only"
    personal: ClassVar[bool] = True
    warm: ClassVar[Literal["sent", "here", "never"]] = "here"
    mixed_ranks: ClassVar[bool] = True
    averages_factors: ClassVar[bool] = False

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield a server optimiser, which has nothing to step by, and what traits rule out."""
        yield from super().faults(experiment, model)
        if (name := experiment.server_optimizer.name) != "none":
            said = f"{name!r} has nothing to step by: nothing is shared; use 'none'"
            yield Fault("server_optimizer.name", said)

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
