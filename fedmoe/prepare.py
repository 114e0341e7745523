"""From an experiment to what a run needs: the resident model, each client's data, the members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmoe.adapter import Adapter, initial_adapter
from fedmoe.aggregation import MIXED_RANKS, FedBuff
from fedmoe.aggregation.strategy import Layouts, Local
from fedmoe.budget import Tier
from fedmoe.config.schema import Experiment
from fedmoe.data import Splits, load_splits, manifest, partition
from fedmoe.data.examples import Example
from fedmoe.data.text import Tokens, tokenize
from fedmoe.errors import ConfigError, DataError, Fault, WireError
from fedmoe.evaluation.evaluate import EvaluationSet
from fedmoe.kept import home_of, read_kept, write_kept
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.build import build_model
from fedmoe.residuals import pack_with_residual
from fedmoe.rounds import Member, ServerState
from fedmoe.seeds import generator, numpy_rng
from fedmoe.training.client import train_client
from fedmoe.training.settings import Training
from fedmoe.wire import (
    Message,
    Task,
    Update,
    pack_update,
    tier_of,
    unpack_task,
    unpack_update,
)  # fmt: skip

OWN = "own"
"""The name under which a client keeps its part of a strategy"""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run before its first round; the same on every machine, from the experiment alone."""

    experiment: Experiment
    model: AdaptedModel
    tokenizer: Any
    rows: tuple[Sequence[Tokens], ...]
    """Each client's training examples."""
    members: tuple[Member, ...]
    tiers: dict[str, int]
    """Tier name to `top_k`."""
    ranks: dict[str, int]
    """Tier name to the rank of its clients' adapters."""
    sets: dict[str, EvaluationSet]
    manifest: dict[str, Any]
    training: Training
    """The experiment's; of more steps where one client stands for all."""
    state_folder: Path | None = None
    """Where clients keep what they need in a later round; see `kept`."""

    @property
    def clients_per_round(self) -> int:
        """Clients that take part in one round."""
        return min(self.experiment.clients_per_round or len(self.members), len(self.members))

    @cached_property
    def initial(self) -> Adapter:
        """The adapter before round 1, which changes nothing; the same on every machine."""
        return initial_adapter(self.model.layout, generator(self.experiment.seed, "adapter"))

    def layouts(self, tier: str, round: int) -> Layouts:
        """What crosses the wire in a round with a client of this tier, and what stays with it.

        Raises:
            WireError: there is no such tier.
        """
        if tier not in self.ranks:
            raise WireError(f"there is no tier {tier!r}; the tiers are {', '.join(self.ranks)}")
        plain, rank = self.model.layout, self.ranks[tier]
        if rank != plain.rank:
            plain = plain.with_rank(rank)
        return self.experiment.aggregation.layouts(plain, round)

    def send(self, state: Adapter, tier: str) -> Adapter:
        """What a client of this tier is sent of the global state."""
        plain, rank = self.model.layout, self.ranks[tier]
        plain = plain if rank == plain.rank else plain.with_rank(rank)
        return self.experiment.aggregation.send(state, plain)

    def send_to(self, state: Adapter, member: Member) -> Adapter:
        """`send` for the round loop."""
        return self.send(state, member.tier)

    def read_task(self, message: Message) -> Task:
        """The checked task in a message; WireError says what is wrong with it."""
        task = unpack_task(message, self.layouts(tier_of(message), 1).task)
        if not 0 <= task.client < len(self.rows):
            raise WireError(
                f"there is no client {task.client}; clients are 0..{len(self.rows) - 1}"
            )
        return task

    def training_of(self, tier: str) -> Training:
        """How a client of this tier trains."""
        steps = self.experiment.budget.resolved(self.model.full_top_k)[tier].steps
        return replace(self.training, steps=steps) if steps else self.training

    def train(self, task: Task) -> Update:
        """Carry out a task with the client's own data."""
        e, (local, before) = self.experiment, self._local(task)
        update = train_client(
            self.model, self.rows[task.client], self.tokenizer.pad_token_id, task,
            self.training_of(task.tier), e.rounds, e.seed, local,
        )  # fmt: skip
        if local.own is not None:
            home = home_of(self.state_folder, task.client, OWN)
            write_kept(home, task.round, before, local.own)
        return update

    def served(self, task: Task) -> Adapter:
        """What the client of a task computes with, in the model's layout, before it trains."""
        return self._local(task)[0].start

    def _local(self, task: Task) -> tuple[Local, int]:
        """The client's side of a task, and the round that what it keeps is from; 0 for none."""
        layouts, own, before = self.layouts(task.tier, task.round), None, 0
        if layouts.own is not None:
            home = home_of(self.state_folder, task.client, OWN)
            before, own = read_kept(home, task.round, layouts.own)
        strategy = self.experiment.aggregation
        return strategy.local(task, layouts, self.initial, own if before else None), before

    def answer(self, task: Task) -> Message:
        """Carry out a task; the update in the form that crosses a network."""
        upload, update = self.experiment.upload, self.train(task)
        if upload.error_feedback and update.delta.layout.size:
            return pack_with_residual(update, task, upload, self.state_folder)
        return pack_update(update, upload)

    def read(self, message: Message, task: Task) -> Update:
        """The checked update in an answer to `task`; WireError says what is wrong with it."""
        e = self.experiment
        return unpack_update(
            message, self.layouts(task.tier, task.round).update, task, e.upload,
            learns_rescaler=e.rescaling.name == "learned",
        )  # fmt: skip

    def first_state(self) -> ServerState:
        """The state before round 1."""
        adapter = self.experiment.aggregation.first_state(self.initial)
        return ServerState(0, adapter, {tier: self.rescaler(k) for tier, k in self.tiers.items()})

    def rescaler(self, top_k: int) -> Tensor:
        """The first factors of a tier."""
        model = self.model
        return model.rescaling.initial(model.layout.num_layers, model.full_top_k, top_k)


def prepare(experiment: Experiment) -> Prepared:
    """Load the model and the data, share the data out, and give every client its tier.

    One thread computes: the same bits on any machine of one kind, and room for parallel workers.

    Raises:
        FedMoEError: whatever of it cannot be done as asked.
    """
    torch.set_num_threads(1)
    model: AdaptedModel
    tokenizer: Any
    model, tokenizer = build_model(experiment.model, experiment.adapter, experiment.rescaling)
    _check_strategy(experiment)
    tiers = experiment.budget.resolved(model.full_top_k)
    ranks = _ranks(experiment, tiers)
    splits = load_splits(experiment.data, experiment.seed)
    train, rows = tokenize(splits.train, tokenizer, experiment.text)
    parts = partition(experiment.partition, [e.label for e in train], experiment.seed)
    names = experiment.budget.assign(len(parts), model.full_top_k, experiment.seed)
    model.check_top_ks({tier.top_k for tier in tiers.values()})
    prepared = Prepared(
        experiment=experiment,
        model=model,
        tokenizer=tokenizer,
        rows=tuple([rows[i] for i in part] for part in parts),
        members=tuple(
            Member(c, tier, tiers[tier].top_k, experiment.availability(tier))
            for c, tier in enumerate(names)
        ),
        tiers={name: tier.top_k for name, tier in tiers.items()},
        ranks=ranks,
        sets=_evaluation_sets(experiment, splits, tokenizer),
        manifest=manifest(train, parts),
        training=experiment.training,
    )
    return _as_asked(prepared)


def _as_asked(prepared: Prepared) -> Prepared:
    """The clients as the strategy wants them: none, all at full budget, or one with all data."""
    strategy, full = prepared.experiment.aggregation, prepared.model.full_top_k
    members, training = prepared.members, prepared.training
    if strategy.full_budget or strategy.pooled:
        members = tuple(replace(member, top_k=full) for member in members)
    if not strategy.trains:
        return replace(prepared, members=())
    if not strategy.pooled:
        return replace(prepared, members=members)
    largest = max(members, key=lambda m: (prepared.tiers[m.tier], -m.client))
    return replace(
        prepared, members=(replace(largest, client=0),),
        rows=([row for rows in prepared.rows for row in rows],),
        # As many as the clients of a round take together.
        training=replace(training, steps=training.steps * prepared.clients_per_round),
    )  # fmt: skip


def _check_strategy(experiment: Experiment) -> None:
    """Refuse settings that the strategy gives no meaning to."""
    strategy, faults = experiment.aggregation, []
    if not strategy.averages and experiment.server_optimizer.name != "none":
        faults.append(
            Fault(
                "server_optimizer.name",
                f"{experiment.server_optimizer.name!r} needs a mean of changes, which "
                f"aggregation.name {strategy.name!r} does not make; use 'none'",
            )
        )
    if experiment.upload.error_feedback and not strategy.same_parts:
        faults.append(
            Fault(
                "upload.error_feedback",
                f"aggregation.name {strategy.name!r} sends other parts in every round, so that "
                "what is owed could not be sent in the next; use false",
            )
        )
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


def _ranks(experiment: Experiment, tiers: dict[str, Tier]) -> dict[str, int]:
    """The rank of every tier's clients."""
    most, strategy = experiment.adapter.rank, experiment.aggregation
    ranks = {name: tier.rank or most for name, tier in tiers.items()}
    faults = [
        Fault(f"budget.tiers.{name}.rank", f"{rank} is over adapter.rank, which is {most}")
        for name, rank in ranks.items()
        if rank > most
    ]
    if len(set(ranks.values())) > 1 and not strategy.mixed_ranks:
        unlike = ", ".join(f"{name} {rank}" for name, rank in ranks.items())
        faults.append(
            Fault(
                "budget.tiers", f"clients have unlike ranks ({unlike}), which aggregation.name "
                f"{strategy.name!r} cannot combine; {', '.join(MIXED_RANKS) or 'none'} can",
            )
        )  # fmt: skip
    if faults:
        raise ConfigError("budget", faults)
    return ranks


def _evaluation_sets(
    experiment: Experiment, splits: Splits, tokenizer: Any
) -> dict[str, EvaluationSet]:
    """A fixed draw of the validation and of the test examples."""
    settings = experiment.evaluation
    sets = {}
    for split, most in (
        ("validation", settings.validation_examples),
        ("test", settings.test_examples),
    ):
        examples: tuple[Example, ...] = getattr(splits, split)
        if not examples:
            raise DataError(f"the dataset has no {split} examples")
        order = numpy_rng(experiment.seed, split).permutation(len(examples))[:most]
        kept, rows = tokenize([examples[i] for i in sorted(order)], tokenizer, experiment.text)
        if not kept:
            raise DataError(f"all {split} examples are longer than text.max_length; raise it")
        sets[split] = EvaluationSet(split, kept, rows, experiment.data.score)
    return sets
