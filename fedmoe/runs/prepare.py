"""From an experiment to the two sides of a run: load, share out, and refuse what cannot be done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from fedmoe.budget import Auto
from fedmoe.budget.auto import tier_plans
from fedmoe.config.constraints import check
from fedmoe.config.schema import Experiment
from fedmoe.data.federated import Federated, LocalData, unknown_names
from fedmoe.data.text import Tokens
from fedmoe.errors import ConfigError
from fedmoe.models.build import build_model
from fedmoe.models.memory.frozen import forms_of, frozen_digest
from fedmoe.models.packed import check_packed
from fedmoe.runs.client_side import ClientSide
from fedmoe.runs.data import STAND_INS, RunData, pooled_data
from fedmoe.runs.limits import check_limits
from fedmoe.runs.members import member_of, named_member
from fedmoe.runs.own_data import OwnData, federated_facts, server_sets
from fedmoe.runs.scorer import Scorer
from fedmoe.runs.server_side import ServerSide
from fedmoe.runs.setup import Setup
from fedmoe.runs.start import first_adapter, read_start
from fedmoe.runs.subsets import places, possible

if TYPE_CHECKING:
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
    holds_rows: bool = True,
    load_data: LoadData = pooled_data,
    loaded: tuple[AdaptedModel, Any] | None = None,
) -> Prepared:
    """Load the model and the data, share the data out, and give every client its tier.

    Args:
        on_nodes: clients have their own machines; with an automatic budget and no devices each
            plans for its own, and tiers say the most that it may activate. An asynchronous run
            without devices goes by their real time.
        holds_rows: False for a server whose clients alone have their rows: of data that come split
            by client it opens none.
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
    if e.simulation.clients_per_pass > 1:
        check_packed(model, e.text.max_length)
    if isinstance(experiment.data, Federated):
        return _federated(experiment, model, tokenizer, on_nodes, holds_rows)
    data = load_data(experiment, tokenizer, model.form.name)
    if not on_nodes or experiment.devices:
        rows = [row for rows in data.rows.values() for row in rows]
        experiment = _planned(experiment, model, rows, max(map(len, data.rows.values())))
    setup = _setup(experiment, model, tokenizer)
    names = experiment.budget.assign(len(data.rows), model.full_top_k, experiment.seed)
    model.check_top_ks(set(setup.top_ks.values()))
    check(experiment, model, Counter(names), on_nodes)
    members = tuple(member_of(setup, c, tier) for c, tier in enumerate(names))
    check_limits(experiment, model, tokenizer, data.sets)
    return Prepared(
        server=ServerSide(setup, members, data.facts(), requested),
        scorer=Scorer(ClientSide(setup, data.rows), data.sets),
    )


def _federated(
    requested: Experiment, model: AdaptedModel, tokenizer: Any, on_nodes: bool, holds_rows: bool
) -> Prepared:
    """Prepare a run of clients that hold their own rows, of which none is read here."""
    experiment, data = requested, cast(Federated, requested.data)
    if not on_nodes or experiment.devices:
        longest = Tokens((0,) * experiment.text.max_length, 1)
        experiment = _planned(experiment, model, [longest] * STAND_INS)
    setup = _setup(experiment, model, tokenizer)
    model.check_top_ks(set(setup.top_ks.values()))
    local = LocalData(data)
    # A server on its own lists names, if its config has paths of its own, and opens no file.
    names = local.names if holds_rows or (data.path and not data.column) else data.clients
    members = tuple(named_member(setup, number, name) for number, name in enumerate(names))
    if holds_rows and not on_nodes and (faults := [*unknown_names(experiment, names)]):
        raise ConfigError("experiment", faults)
    if members and not on_nodes:
        check(experiment, model, Counter(member.tier for member in members))
    rows = OwnData(local, experiment, tokenizer, model.form.name) if holds_rows else {}
    sets = server_sets(experiment, tokenizer, model.form.name)
    check_limits(experiment, model, tokenizer, sets)
    return Prepared(
        server=ServerSide(setup, members, federated_facts(experiment), requested),
        scorer=Scorer(ClientSide(setup, rows), sets),
    )


def _setup(experiment: Experiment, model: AdaptedModel, tokenizer: Any) -> Setup:
    """Build what both sides share; the model stores its experts as the tiers need them."""
    tiers = experiment.budget.resolved(model.full_top_k)
    base = frozen_digest(model.model)
    model.frozen.hold(forms_of(places(tiers.values())))
    initial, start = first_adapter(experiment, model.layout), read_start(experiment, model, base)
    if start and experiment.aggregation.warm == "here":
        initial = start.adapter
    training = experiment.training
    return Setup(experiment, model, tokenizer, tiers, training, initial, base, start)


def _planned(
    experiment: Experiment, model: AdaptedModel, rows: Sequence[Tokens], most_rows: int = STAND_INS
) -> Experiment:
    """The experiment with an automatic budget's tiers planned, and so fixed.

    `most_rows` are those of the client that has the most: every client of a tier has to be in time.
    """
    e = experiment
    if not isinstance(e.budget, Auto):
        return e
    plans = tier_plans(
        e.budget,
        model,
        rows,
        e.training.on(most_rows),
        e.devices,
        e.aggregation,
        e.upload,
        possible(e, model),
    )
    return replace(e, budget=e.budget.fixed(plans, model.full_top_k))
