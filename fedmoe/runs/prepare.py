"""From an experiment to the two sides of a run: load, share out, and refuse what cannot be done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedmoe.adapter import initial_adapter
from fedmoe.budget import Auto
from fedmoe.budget.auto import tier_plans
from fedmoe.config.constraints import check
from fedmoe.config.schema import Experiment
from fedmoe.models.build import build_model
from fedmoe.models.memory.frozen import forms_of, frozen_digest
from fedmoe.rounds import Member
from fedmoe.runs.client_side import ClientSide
from fedmoe.runs.data import RunData, pooled_data
from fedmoe.runs.scorer import Scorer
from fedmoe.runs.server_side import ServerSide
from fedmoe.runs.setup import Setup
from fedmoe.runs.subsets import places, possible
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
            plans for its own, and tiers say the most that it may activate. An asynchronous run
            without devices goes by their real time.
        load_data: makes the data; by default one data set is shared out.
        loaded: a model and its tokenizer, if they have been loaded already.

    Raises:
        FedMoEError: whatever of it cannot be done as requested.
    """
    e = requested = experiment
    model, tokenizer = loaded or build_model(
        e.model, e.adapter, e.rescaling, e.gating, experts_stay=True
    )
    check(experiment, model, on_nodes=on_nodes)
    data = load_data(experiment, tokenizer, model.form.name)
    if not on_nodes or experiment.devices:
        rows = [row for rows in data.rows.values() for row in rows]
        experiment = _planned(experiment, model, rows)
    setup = _setup(experiment, model, tokenizer)
    names = experiment.budget.assign(len(data.rows), model.full_top_k, experiment.seed)
    model.check_top_ks(set(setup.top_ks.values()))
    check(experiment, model, Counter(names), on_nodes)
    members = tuple(_member(experiment, c, tier, setup.tiers[tier]) for c, tier in enumerate(names))
    return Prepared(
        server=ServerSide(setup, members, data.facts(), requested),
        scorer=Scorer(ClientSide(setup, data.rows), data.sets),
    )


def _setup(experiment: Experiment, model: AdaptedModel, tokenizer: Any) -> Setup:
    """Build what both sides share; the model stores its experts as the tiers need them."""
    tiers = experiment.budget.resolved(model.full_top_k)
    base = frozen_digest(model.model)
    model.frozen.hold(forms_of(places(tiers.values())))
    initial = initial_adapter(model.layout, generator(experiment.seed, "adapter"))
    return Setup(experiment, model, tokenizer, tiers, experiment.training, initial, base)


def _member(experiment: Experiment, client: int, name: str, tier: Tier) -> Member:
    availability = 0.0 if tier.skipped else experiment.availability(name)
    return Member(client, name, tier.top_k, availability)


def _planned(experiment: Experiment, model: AdaptedModel, rows: Sequence[Tokens]) -> Experiment:
    """The experiment with an automatic budget's tiers planned, and so fixed."""
    e = experiment
    if not isinstance(e.budget, Auto):
        return e
    plans = tier_plans(
        e.budget, model, rows, e.training, e.devices, e.aggregation, e.upload, possible(e, model)
    )
    return replace(e, budget=e.budget.fixed(plans, model.full_top_k))
