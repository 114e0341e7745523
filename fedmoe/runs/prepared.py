"""A run before its first round: the resident model, each client's data, and what passes between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.aggregation.strategy import Layouts, Local
from fedmoe.budget import Tier
from fedmoe.budget.replan import within_memory
from fedmoe.config.schema import Experiment
from fedmoe.data.text import Tokens
from fedmoe.errors import WireError
from fedmoe.evaluation.evaluate import EvaluationSet
from fedmoe.messages.codec import (
    Message,
    Task,
    Update,
    pack_update,
    tier_of,
    unpack_task,
    unpack_update,
)
from fedmoe.messages.validation import LARGEST_DELTA, Limits
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.memory.subset import Subset
from fedmoe.rounds import Member, ServerState
from fedmoe.runs.client_state import home_of, read_client_state, write_client_state
from fedmoe.runs.residuals import pack_with_residual
from fedmoe.seeds import numpy_rng
from fedmoe.training.client import train_client
from fedmoe.training.profile import profile
from fedmoe.training.settings import Training

OWN = "own"
"""The name under which a client keeps its part of a strategy"""
MARGIN = 10.0
"""How many times what training can move a value by the server takes."""
MOST_SCORED = 4
"""Clients of a tier whose mean score is the tier's, where each has experts of its own."""


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
    initial: Adapter
    """The adapter before round 1, which changes nothing; the same on every machine."""
    base: str
    """A digest of the frozen model as it was loaded."""
    state_folder: Path | None = None
    """Where clients keep what they need in a later round; see `kept`."""
    requested: Experiment | None = None
    """The experiment as it was given: one with an automatic budget is planned since."""
    nodes_code: Path | None = None
    """What clients run beside this package, where they have machines of their own."""
    run_id: str = "run"
    """The run's own name, on every machine: what clients keep there of other runs is not its."""

    @property
    def clients_per_round(self) -> int:
        """Clients that take part in one round."""
        return min(self.experiment.clients_per_round or len(self.members), len(self.members))

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
        changes = self.tier(tier).training_changes
        return replace(self.training, **changes) if changes else self.training

    def configure_experts(self, tier: str) -> None:
        """Let the model compute with the frozen experts of this tier's devices, all of them."""
        self.model.kept.clear()
        self.model.frozen.use(self.tier(tier).frozen)

    def subset(self, tier: str) -> Subset | None:
        """The subset of experts that this tier's clients keep; None where they keep all."""
        subset = self.tier(tier).subset
        return subset if subset and subset.keep < self.model.layout.num_experts else None

    def configure(self, task: Task, adapter: Adapter) -> None:
        """Let the model compute as the task's client does: with its form, and its subset, of them.

        The subset follows from the client's own data, drawn by (seed, round, client), and from
        what it computes with at the task's k.
        """
        self.configure_experts(task.tier)
        if (subset := self.subset(task.tier)) is None:
            return
        model, rows = self.model, self.rows[task.client]
        model.frozen.use(subset.profile or self.tier(task.tier).frozen)
        model.load(adapter)
        model.set_budget(task.top_k, task.rescaler)
        path = "round", task.round, "client", task.client, "profile"
        rng = numpy_rng(self.experiment.seed, *path)
        size, pad = self.training_of(task.tier).batch_size, self.tokenizer.pad_token_id
        counts = profile(model, rows, subset.examples, size, pad, rng)
        model.frozen.use(self.tier(task.tier).frozen)
        model.kept.keep(counts, subset, offloaded=self.tier(task.tier).offload)

    def scored(self, tier: str) -> list[int]:
        """Clients whose mean score stands for the tier's; any one, where all are served the same.

        Where clients keep subsets of their own, the tier's first few.
        """
        mine = [m.client for m in self.members if m.tier == tier]
        if self.experiment.aggregation.personal:
            return mine
        return mine[:MOST_SCORED] if mine and self.subset(tier) else [0]

    def tier(self, name: str) -> Tier:
        """A tier as it was asked for, or planned."""
        return self.experiment.budget.resolved(self.model.full_top_k)[name]

    def train(self, task: Task) -> Update:
        """Carry out a task with the client's own data; with fewer experts if memory runs out."""
        who = f"client {task.client}, round {task.round},"
        return within_memory(lambda k: self._train(replace(task, top_k=k)), task.top_k, who)[0]

    def _train(self, task: Task) -> Update:
        e, (local, before) = self.experiment, self._local(task)
        self.configure(task, local.start)
        update = train_client(
            self.model,
            self.rows[task.client],
            self.tokenizer.pad_token_id,
            task,
            self.training_of(task.tier),
            e.rounds,
            e.seed,
            local,
            e.losses,
        )
        if local.own is not None:
            if not local.own.flat.isfinite().all():
                raise WireError(f"client {task.client} diverged: what it would keep is not finite")
            home = home_of(self.state_folder, task.client, OWN)
            write_client_state(home, task.round, before, local.own)
        return update

    def deployed_adapter(self, task: Task) -> Adapter:
        """What the model computes with outside training, in its layout.

        Where the strategy is personal, it is the task's client whose part counts; else what any
        client without a past would start from.
        """
        strategy = self.experiment.aggregation
        if strategy.personal:
            return self._local(task)[0].start
        layouts = self.layouts(task.tier, task.round)
        return strategy.local(task, layouts, self.initial).start

    def _local(self, task: Task) -> tuple[Local, int]:
        """The client's side of a task, and the round that what it keeps is from; 0 for none."""
        layouts, own, before = self.layouts(task.tier, task.round), None, 0
        if layouts.own is not None:
            home = home_of(self.state_folder, task.client, OWN)
            before, own = read_client_state(home, task.round, layouts.own)
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
        e, limits = self.experiment, self.limits(task)
        if not e.gating.exact_counts:
            limits = replace(limits, per_token=e.gating.per_token)
        elif self.model.family.capacity:
            limits = replace(limits, per_token=lambda top_k: (0.0, float(top_k)))
        if len(stacks := Counter(self.model.stacks)) > 1:
            limits = replace(limits, stacks=tuple(stacks.values()))
        if subset := self.subset(task.tier):
            limits = replace(limits, most_experts=subset.keep, merges=subset.merges)
        return unpack_update(
            message,
            self.layouts(task.tier, task.round).update,
            task,
            e.upload,
            learns_rescaler=e.rescaling.learned,
            limits=limits,
        )

    def limits(self, task: Task) -> Limits:
        """What an honest client can send at most in answer to a task.

        Ten times what training can move a value by (`Training.reach`), from what was sent, or from
        what a client may have made of its own part since round 1; and what the strategy adds. What
        rounding left out of earlier updates is within the ten times. What `top_k` left out adds up:
        a client may owe all that it ever changed, which is as much again for every round.
        """
        e, training = self.experiment, self.training_of(task.tier)
        start = 0.0
        if training.weight_decay:
            start = max(task.adapter.largest(), self.initial.largest())
            start += task.round * replace(training, weight_decay=0.0).reach()
        owing = e.upload.owes_more and e.upload.error_feedback
        most, free = e.aggregation.reach(task, training.reach(start))
        most = min(most * (MARGIN + task.round * owing), LARGEST_DELTA)
        rescaler = 0.0
        if e.rescaling.learned:
            rate = e.rescaling.learning_rate
            learned = replace(training, learning_rate=rate, weight_decay=0.0)
            rescaler = min(MARGIN * learned.reach(), LARGEST_DELTA)
        why = f"ten times what {training.steps} steps of AdamW can move"
        return Limits(e.admission.most_examples, most, free, why, rescaler)

    def first_state(self) -> ServerState:
        """The state before round 1."""
        adapter = self.experiment.aggregation.first_state(self.initial)
        return ServerState(0, adapter, {tier: self.rescaler(k) for tier, k in self.tiers.items()})

    def rescaler(self, top_k: int) -> Tensor:
        """The first factors of a tier."""
        model = self.model
        return model.rescaling.initial(model.layout.num_layers, model.full_top_k, top_k)
