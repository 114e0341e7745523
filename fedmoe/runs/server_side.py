"""The server side of a run: members, tasks, limits and the global state, without anybody's rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fedmoe.messages.codec import examples_of, unpack_update
from fedmoe.messages.validation import LARGEST_DELTA, LIMITS, Limits
from fedmoe.rounds import ServerState
from fedmoe.runs.members import named_member
from fedmoe.runs.roster import Roster

if TYPE_CHECKING:
    from fedmoe.adapter import Adapter
    from fedmoe.config.schema import Experiment
    from fedmoe.messages.records import Message, Task, Update
    from fedmoe.rounds import Member
    from fedmoe.runs.data import DataFacts
    from fedmoe.runs.setup import Setup

MARGIN = 3.0
"""Factor on the largest move of a single value in training that the server accepts."""
SLACK = 1.1
"""Factor on the root mean square of all moves, for rounding alone: with few steps an honest client
comes close to the most that training can move."""
ROUNDED = 0.2
"""Share of what a client sent that rounding can have left out, to be sent with its next update."""
MOST_SCORED = 4
"""Clients of a tier whose mean score is the tier's, where each has experts of its own."""


@dataclass(frozen=True, eq=False)
class ServerSide:
    """Plans what clients are sent, and checks what they answer."""

    setup: Setup
    members: Sequence[Member]
    """By number; of a run whose clients come and go those that are known so far."""
    facts: DataFacts
    requested: Experiment
    """The experiment as it was given: an automatic budget is still to be planned there."""
    run_id: str = "run"
    """Names the run on every machine: a node never mixes up the client states of two runs."""
    nodes_code: Path | None = None
    """The code that clients run beside this package, where they have their own machines."""

    @property
    def known(self) -> Sequence[Member]:
        """Return the members, those included that are listed and have not been seen yet."""
        listed = getattr(self.setup.experiment.data, "clients", ())
        if not isinstance(self.members, Roster) or not listed:
            return self.members
        return [named_member(self.setup, number, name) for number, name in enumerate(listed)]

    @property
    def clients_per_round(self) -> int:
        """Return how many clients take part in one round; 0 for all, where none is known yet."""
        wanted, number = self.setup.experiment.clients_per_round, len(self.members)
        # Of a run whose clients come and go nobody may be known yet.
        return min(wanted or number, number) if number else wanted or 0

    def first_state(self) -> ServerState:
        """Return the state before round 1."""
        rescalers = {tier: self.rescaler(k) for tier, k in self.setup.top_ks.items()}
        return ServerState(0, self.setup.first_state(), rescalers)

    def rescaler(self, top_k: int) -> Tensor:
        """Return a tier's factors before round 1, float32 (layers,)."""
        model = self.setup.model
        return model.rescaling.initial(model.layout.num_layers, model.full_top_k, top_k)

    def send(self, state: Adapter, tier: str) -> Adapter:
        """Return what a client of this tier is sent of the global state."""
        return self.setup.experiment.aggregation.send(state, self.setup.plain(tier))

    def send_to(self, state: Adapter, member: Member) -> Adapter:
        """Return what a member is sent of the global state; see `rounds.Send`."""
        return self.send(state, member.tier)

    def scored(self, tier: str) -> list[int]:
        """Return the clients whose mean score stands for the tier's.

        Any one, where all compute with the same model; the tier's first few, where each holds its
        own subset of experts; all, where each stores a part of the model.
        """
        mine = [m.client for m in self.members if m.tier == tier]
        if self.setup.experiment.aggregation.personal:
            return mine
        return mine[:MOST_SCORED] if mine and self.setup.subset(tier) else [0]

    def read(self, message: Message, task: Task) -> Update:
        """Return the checked update in an answer to `task`.

        Raises:
            WireError: the message is no answer that an honest client could give.
        """
        setup, limits = self.setup, self.limits(task, examples_of(message))
        e, model = setup.experiment, setup.model
        if not e.gating.exact_counts:
            limits = replace(limits, per_token=e.gating.per_token)
        elif model.family.capacity:
            limits = replace(limits, per_token=lambda top_k: (0.0, float(top_k)))
        if len(stacks := Counter(model.stacks)) > 1:
            limits = replace(limits, stacks=tuple(stacks.values()))
        if subset := setup.subset(task.tier):
            limits = replace(limits, most_experts=subset.keep, merges=subset.merges)
        layout = setup.layouts(task.tier, task.round).update
        learns = e.rescaling.learned
        return unpack_update(message, layout, task, e.upload, learns_rescaler=learns, limits=limits)

    def limits(self, task: Task, examples: int = 1) -> Limits:
        """Return the most that an honest client can send in answer to a task.

        The number of `examples` that it claims decides how many steps it took, if they go by
        epochs: more may move more, and weigh more, up to what the server knows of its data.

        No value moves by more than training can move it in that round (`Training.reach`), from
        what was sent, or from what a client may have made of its own part since round 1; and by
        what the strategy adds. So their root mean square is bounded by the same, but for rounding,
        and a single one by three times as much. What earlier updates left out is owed: of rounding
        a share, of `top_k` all that the client ever changed.
        """
        setup, e, start = self.setup, self.setup.experiment, 0.0
        most_examples, held = self._most_examples(task)
        training = setup.training_of(task.tier).on(min(max(1, examples), most_examples))
        if training.weight_decay:
            start = max(task.adapter.largest(), setup.initial.largest())
            start += task.round * replace(training, weight_decay=0.0).reach()
        now = training.reach(start, task.round, e.rounds)
        most, free = e.aggregation.reach(task, now)
        owed = 0.0
        if e.upload.error_feedback:
            peak, _ = e.aggregation.reach(task, training.reach(start))
            owed = peak * (task.round if e.upload.owes_more else ROUNDED)
        rescaler = 0.0
        if e.rescaling.learned:
            rate = e.rescaling.learning_rate
            learned = replace(training, learning_rate=rate, weight_decay=0.0)
            rescaler = min(MARGIN * learned.reach(0.0, task.round, e.rounds), LARGEST_DELTA)
        # Only a local step of one's own may take any number of steps, and of any length.
        own = training.local_step is not None
        length = e.text.max_length * len({*setup.model.stacks})
        said = f"more than {training.steps} steps of AdamW at this round's rate can move"
        return Limits(
            examples=most_examples,
            held=held,
            steps=None if own else training.steps,
            tokens=training.most_tokens(length),
            delta=min(MARGIN * most + owed, LARGEST_DELTA),
            mean=SLACK * (most + owed),
            free=free,
            why=said if now < math.inf else LIMITS.why,
            rescaler=rescaler,
        )

    def _most_examples(self, task: Task) -> tuple[int, str]:
        """Return the examples that a client may claim, and why no more.

        The server has the partition where it made one. Of rows that clients alone have it knows
        what each said first.
        """
        most, held = self.setup.experiment.admission.most_examples, Limits.held
        if self.facts.lengths:
            known, why = len(self.facts.lengths[task.client]), "(its part of the partition)"
        elif isinstance(self.members, Roster) and task.client in self.members.said:
            known, why = self.members.most_examples(task.client)
        else:
            return most, held
        return (known, why) if known < most else (most, held)
