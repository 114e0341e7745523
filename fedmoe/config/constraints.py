"""Faults of a whole experiment: each part is asked what it cannot work with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from fedmoe.config.faults import parse_faults
from fedmoe.config.words import not_one_of
from fedmoe.errors import ConfigError, Fault
from fedmoe.models.tasks import causal_fault


def faults_of(experiment: Any, model: Any = None) -> Iterator[Fault]:
    """Yield what any part of an experiment cannot honour; see `section.Component.faults`.

    Args:
        experiment: an `Experiment`, which asks here itself while it is being made.
        model: its `AdaptedModel`, or one of shapes alone (`models.memory.meta`); None leaves out
            what depends on the model.
    """
    yield from _device_faults(experiment, model)
    for field in fields(experiment):
        if ask := getattr(getattr(experiment, field.name), "faults", None):
            yield from ask(experiment, model)


def check(
    experiment: Any, model: Any, clients: Mapping[str, int] | None = None, on_nodes: bool = False
) -> None:
    """Refuse an experiment that this model, or these clients, cannot carry out.

    Args:
        model: as in `faults_of`.
        clients: the number of clients in each tier that has any; None while it is not known.
        on_nodes: clients have their own machines, which have their own time.

    Raises:
        ConfigError: with every fault of every part.
    """
    faults = [*faults_of(experiment, model)]
    if on_nodes and experiment.adapter.start and experiment.aggregation.warm == "here":
        said = f"is here alone, and clients of {experiment.aggregation.name!r} need it; train in"
        faults.append(Fault("adapter.start", f"{said} one process, or with another strategy"))
    if on_nodes and experiment.simulation.clients_per_pass > 1:
        said = "is for clients of one process, and each node trains its own; leave it out"
        faults.append(Fault("simulation.clients_per_pass", said))
    if experiment.aggregation.asynchronous and not experiment.devices:
        faults += _real_time_faults(experiment, on_nodes)
    if clients is not None:
        faults += _client_faults(experiment, model, clients)
    if faults:
        raise ConfigError("experiment", dict.fromkeys(faults))


def _device_faults(experiment: Any, model: Any) -> Iterator[Fault]:
    """Yield tiers and devices that do not match, and models that no clock can time."""
    if not experiment.devices:
        return
    tiers = [*experiment.budget.resolved(1)]
    for tier in experiment.devices:
        if tier not in tiers:
            yield Fault("devices", not_one_of(tier, tiers))
    if bare := [tier for tier in tiers if tier not in experiment.devices]:
        names = ", ".join(map(repr, bare))
        yield Fault("devices", f"no device for {names}; give every tier one, or none")
    if model is not None and (fault := causal_fault(model.model)):
        yield Fault("devices", f"a virtual clock {fault}")


def _real_time_faults(experiment: Any, on_nodes: bool) -> Iterator[Fault]:
    """Yield what an asynchronous run lacks whose clients have no virtual time."""
    if not on_nodes:
        yield Fault(
            "devices",
            f"missing: aggregation.name {experiment.aggregation.name!r} goes by the virtual time "
            "of clients' devices, except on Flower's nodes; give every tier one, as "
            "configs/fleet_virtual.yaml does",
        )
    elif parse_faults(experiment.faults).slow > 1:
        said = "would delay the server, which waits for no client; give every tier a device"
        yield Fault("faults", f"slow {said}, or leave it out")


def _client_faults(experiment: Any, model: Any, clients: Mapping[str, int]) -> Iterator[Fault]:
    """Yield a buffer that is never full, and tiers that nobody can be scored for."""
    strategy, tiers = experiment.aggregation, experiment.budget.resolved(model.full_top_k)
    there = sum(number for name, number in clients.items() if not tiers[name].skipped)
    if strategy.asynchronous and (needed := strategy.updates_per_step(1)) > there:
        said = f"{needed} is over the number of clients that take part, {there}; lower it"
        yield Fault("aggregation.buffer_size", said)
    for name, tier in tiers.items():
        if not clients.get(name) and (strategy.personal or tier.subset):
            who = f"aggregation.name {strategy.name!r}" if strategy.personal else "its subset"
            said = f"has no client, so that {who}, which scores clients, has nothing to score"
            yield Fault(f"budget.tiers.{name}", f"{said}; give it a share, or leave it out")
