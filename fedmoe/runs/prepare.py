"""From an experiment to the two sides of a run: load, share out, and refuse what cannot be done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedmoe.adapter import initial_adapter
from fedmoe.aggregation import MIXED_RANKS, FedBuff
from fedmoe.budget import Auto
from fedmoe.budget.auto import tier_plans
from fedmoe.config.schema import Experiment
from fedmoe.errors import ConfigError, Fault
from fedmoe.models.build import build_model
from fedmoe.models.memory.frozen import forms_of, frozen_digest
from fedmoe.models.modulation import SOFTMAX
from fedmoe.models.rescaling import StaticRescaling
from fedmoe.models.tasks import require_causal
from fedmoe.rounds import Member
from fedmoe.runs.client_side import ClientSide
from fedmoe.runs.data import RunData, pooled_data
from fedmoe.runs.scorer import Scorer
from fedmoe.runs.server_side import ServerSide
from fedmoe.runs.setup import Setup
from fedmoe.runs.subsets import check_subsets, places, possible
from fedmoe.seeds import generator

if TYPE_CHECKING:
    from fedmoe.budget import Tier
    from fedmoe.data.text import Tokens
    from fedmoe.models.adapted import AdaptedModel

LoadData = Callable[[Experiment, Any, str], RunData]
"""Makes a run's data from the experiment, the tokenizer and the model's form of task."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run before its first round, where one process has both sides of it."""

    server: ServerSide
    scorer: Scorer

    @property
    def setup(self) -> Setup:
        """Return what both sides share."""
        return self.server.setup

    @property
    def client(self) -> ClientSide:
        """Return the client side, which has every client's rows."""
        return self.scorer.client


def prepare(
    experiment: Experiment,
    *,
    on_nodes: bool = False,
    load_data: LoadData = pooled_data,
    loaded: tuple[AdaptedModel, Any] | None = None,
) -> Prepared:
    """Load the model and the data, share the data out, and give every client its tier.

    Args:
        experiment: what is requested.
        on_nodes: clients have their own machines; with an automatic budget and no devices each
            plans for its own, and tiers say the most that it may activate.
        load_data: makes the data; by default one data set is shared out.
        loaded: a model and its tokenizer, if they have been loaded already.

    Raises:
        FedMoEError: whatever of it cannot be done as requested.
    """
    e = requested = experiment
    model, tokenizer = loaded or build_model(
        e.model, e.adapter, e.rescaling, e.gating, experts_stay=True
    )
    _check_strategy(experiment)
    _check_routers(experiment, model)
    _check_task(experiment, model)
    data = load_data(experiment, tokenizer, model.form.name)
    if not on_nodes or experiment.devices:
        rows = [row for rows in data.rows.values() for row in rows]
        experiment = _planned(experiment, model, rows)
    setup = _setup(experiment, model, tokenizer)
    names = experiment.budget.assign(len(data.rows), model.full_top_k, experiment.seed)
    model.check_top_ks(set(setup.top_ks.values()))
    _check_buffer(experiment, [setup.tiers[name] for name in names])
    _check_scored(experiment, setup.tiers, names)
    members = tuple(_member(experiment, c, tier, setup.tiers[tier]) for c, tier in enumerate(names))
    prepared = Prepared(
        server=ServerSide(setup, members, data.facts(), requested),
        scorer=Scorer(ClientSide(setup, data.rows), data.sets),
    )
    return _as_asked(prepared)


def _setup(experiment: Experiment, model: AdaptedModel, tokenizer: Any) -> Setup:
    """Build what both sides share; the model stores its experts as the tiers need them."""
    tiers = experiment.budget.resolved(model.full_top_k)
    check_subsets(experiment, model, tiers)
    base = frozen_digest(model.model)
    model.frozen.hold(forms_of(places(tiers.values())))
    _check_ranks(experiment, tiers)
    initial = initial_adapter(model.layout, generator(experiment.seed, "adapter"))
    return Setup(experiment, model, tokenizer, tiers, experiment.training, initial, base)


def _member(experiment: Experiment, client: int, name: str, tier: Tier) -> Member:
    availability = 0.0 if tier.skipped else experiment.availability(name)
    return Member(client, name, tier.top_k, availability)


def _check_scored(experiment: Experiment, tiers: dict[str, Tier], names: Sequence[str]) -> None:
    """Refuse tiers without clients, where a score is that of clients."""
    strategy, empty = experiment.aggregation, sorted(set(tiers) - set(names))
    bare = [name for name in empty if strategy.personal or tiers[name].subset]
    if bare:
        who = f"aggregation.name {strategy.name!r}" if strategy.personal else "its subset"
        said = f"has no client, so that {who}, which scores clients, has nothing to score"
        raise ConfigError("budget", [Fault(f"budget.tiers.{bare[0]}", said)])


def _check_buffer(experiment: Experiment, tiers: Sequence[Tier]) -> None:
    """Refuse a buffer that the clients, of these tiers, could never fill."""
    strategy, there = experiment.aggregation, sum(not tier.skipped for tier in tiers)
    if isinstance(strategy, FedBuff) and (strategy.buffer_size or 0) > there:
        said = f"{strategy.buffer_size} is over the number of clients that take part, {there}"
        raise ConfigError("aggregation", [Fault("aggregation.buffer_size", said)])


def _planned(experiment: Experiment, model: AdaptedModel, rows: Sequence[Tokens]) -> Experiment:
    """The experiment with an automatic budget's tiers planned, and so fixed."""
    e = experiment
    if not isinstance(e.budget, Auto):
        return e
    plans = tier_plans(
        e.budget, model, rows, e.training, e.devices, e.aggregation, e.upload, possible(e, model)
    )
    return replace(e, budget=e.budget.fixed(plans, model.full_top_k))


def _as_asked(prepared: Prepared) -> Prepared:
    """The clients as the strategy wants them: none, all at full budget, or one with all data."""
    setup, server, client = prepared.setup, prepared.server, prepared.client
    strategy, full, members = setup.experiment.aggregation, setup.model.full_top_k, server.members
    if strategy.full_budget or strategy.pooled:
        members = tuple(replace(member, top_k=full) for member in members)
    if not strategy.trains:
        return replace(prepared, server=replace(server, members=()))
    if not strategy.pooled:
        return replace(prepared, server=replace(server, members=members))
    # One machine that is always there stands for all of them.
    largest = max(members, key=lambda m: (setup.top_ks[m.tier], -m.client))
    # As many steps as the clients of a round take together.
    steps = setup.training.steps * server.clients_per_round
    setup = replace(setup, training=replace(setup.training, steps=steps))
    rows = {0: [row for rows in client.rows.values() for row in rows]}
    facts = replace(server.facts, lengths=(tuple(len(row.ids) for row in rows[0]),))
    members = (replace(largest, client=0, availability=1.0),)
    client = replace(client, setup=setup, rows=rows)
    server = replace(server, setup=setup, members=members, facts=facts)
    return Prepared(server, replace(prepared.scorer, client=client))


def _check_task(experiment: Experiment, model: AdaptedModel) -> None:
    """Refuse what reckons with the work of causal language models, for any other."""
    if isinstance(experiment.budget, Auto):
        require_causal(model.model, "budget.name 'auto'")
    if experiment.devices:
        require_causal(model.model, "a virtual clock (devices)")


def check_settings(experiment: Experiment, full_top_k: int | None) -> None:
    """Refuse what would be refused when a run begins, without its model and data.

    Tiers are not looked at where the model's K is not known.

    Raises:
        ConfigError: with the faults of one section.
    """
    _check_strategy(experiment)
    if full_top_k is not None and not isinstance(experiment.budget, Auto):
        if faults := experiment.budget.over(full_top_k):
            raise ConfigError("budget", faults)
        _check_ranks(experiment, experiment.budget.resolved(full_top_k))


def _check_strategy(experiment: Experiment) -> None:
    """Refuse settings that the strategy gives no meaning to."""
    strategy, faults = experiment.aggregation, []
    if not strategy.steps and experiment.server_optimizer.name != "none":
        faults.append(
            Fault(
                "server_optimizer.name",
                f"{experiment.server_optimizer.name!r} has nothing to step by: the server of "
                f"aggregation.name {strategy.name!r} changes nothing; use 'none'",
            )
        )
    if experiment.upload.error_feedback and not strategy.continues:
        faults.append(
            Fault(
                "upload.error_feedback",
                f"what clients of aggregation.name {strategy.name!r} send means something else in "
                "the next round, so that what is owed could not be added there; use false",
            )
        )
    rescaling = experiment.rescaling
    if rescaling.name not in strategy.rescalings:
        faults.append(
            Fault(
                "rescaling.name",
                f"{rescaling.name!r} has no meaning with aggregation.name {strategy.name!r}; use "
                f"{' or '.join(map(repr, strategy.rescalings))}",
            )
        )
    by_mass = isinstance(rescaling, StaticRescaling) and rescaling.by == "mass"
    if strategy.name == "ub_smoe" and by_mass:
        said = "'mass' and aggregation.name 'ub_smoe' both change the routers' weights; use 'ratio'"
        faults.append(Fault("rescaling.by", said))
    if isinstance(strategy, FedBuff) and not experiment.devices:
        faults.append(
            Fault(
                "devices",
                "missing: aggregation.name 'fedbuff' goes by the virtual time of clients' devices; "
                "give every tier one, as configs/fleet_virtual.yaml does",
            )
        )
    if faults:
        raise ConfigError("aggregation", faults)


def _check_routers(experiment: Experiment, model: AdaptedModel) -> None:
    """Refuse what needs routers that take a softmax, where the model's do something else."""
    kind, e = model.family.model_type, experiment
    if kind in SOFTMAX and all(model.family.is_plain(layer.router) for layer in model.layers):
        return
    said = "needs routers that take a softmax of their logits; "
    if kind in SOFTMAX:
        said += f"this {kind!r} model's config asks for another rule (a norm, or a function)"
    else:
        said += f"those of {kind!r} models do not ({model.family.rule}); model types that do: "
        said += ", ".join(SOFTMAX)
    faults = [
        Fault(f"losses.{name}", f"{weight} {said}; use 0")
        for name, weight in e.losses.asked.items()
    ]
    if e.aggregation.name == "ub_smoe":
        faults.append(Fault("aggregation.name", f"'ub_smoe' {said}; use another strategy"))
    if faults:
        raise ConfigError("model", faults)


def _check_ranks(experiment: Experiment, tiers: Mapping[str, Tier]) -> None:
    """Refuse ranks over the adapter's, and unlike ones that the strategy cannot combine."""
    most, strategy = experiment.adapter.rank, experiment.aggregation
    ranks = {name: tier.rank or most for name, tier in tiers.items()}
    faults = [
        Fault(f"budget.tiers.{name}.rank", f"{rank} is over adapter.rank, which is {most}")
        for name, rank in ranks.items()
        if rank > most
    ]
    if any(rank < most for rank in ranks.values()) and not strategy.mixed_ranks:
        unlike = ", ".join(f"{name} {rank}" for name, rank in ranks.items())
        faults.append(
            Fault(
                "budget.tiers",
                f"ranks ({unlike}) below adapter.rank, {most}, are what "
                f"aggregation.name {strategy.name!r} cannot combine; {', '.join(MIXED_RANKS)} can",
            )
        )
    if faults:
        raise ConfigError("budget", faults)
