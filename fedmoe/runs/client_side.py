"""The client side of a run: its own rows, its local training and its state between rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedmoe.budget.replan import within_memory
from fedmoe.errors import WireError
from fedmoe.messages.codec import pack_update, tier_of, unpack_task
from fedmoe.runs.client_state import home_of, read_client_state, write_client_state
from fedmoe.runs.own_data import OwnData
from fedmoe.runs.residuals import pack_with_residual
from fedmoe.seeds import numpy_rng
from fedmoe.training.client import Trainee, train_client
from fedmoe.training.profile import profile
from fedmoe.training.steps import LoggedSteps, Told

if TYPE_CHECKING:
    from fedmoe.adapter import Adapter
    from fedmoe.aggregation.strategy import Local
    from fedmoe.data.text import Tokens
    from fedmoe.messages.records import Message, Task, Update
    from fedmoe.runs.setup import Setup

REPORTS = frozenset(("labels", "score", "name"))
"""What a client with rows of its own may withhold: the names and numbers of its labels, its scores,
and its name in reports."""
OWN = "own"
"""The name under which a client stores its part of a strategy."""


class Ended(NamedTuple):
    """A client's round after training, before it has stored anything."""

    task: Task
    update: Update
    local: Local
    before: int
    """The round that its state is from; 0 for none."""


@dataclass(frozen=True, eq=False)
class ClientSide:
    """Carries out tasks with the rows of the clients that are here, and with no other's."""

    setup: Setup
    rows: Mapping[Any, Sequence[Tokens]]
    """By client (`Task.key`): its own training examples."""
    state_folder: Path | None = None
    """Where clients store what they need in a later round; see `client_state`."""
    reports: frozenset[str] = REPORTS
    """What clients tell the server beside what training needs; see `REPORTS`."""
    told: Told = field(default_factory=LoggedSteps)
    """Is told of every step in training."""

    def read_task(self, message: Message) -> Task:
        """Return the checked task in a message.

        Raises:
            WireError: the message is no task for a client that is here.
        """
        task = self.unpack(message)
        if task.key not in self.rows:
            if task.name or isinstance(self.rows, OwnData):
                there = ", ".join(self.rows)[:200] or "none"
                raise WireError(f"the rows of client {task.name!r} are not here; here: {there}")
            clients = f"{min(self.rows, default=0)}..{max(self.rows, default=0)}"
            raise WireError(f"there is no client {task.client}; clients are {clients}")
        return task

    def unpack(self, message: Message) -> Task:
        """Return the checked task in a message, whoever it is for; see `read_task`."""
        return unpack_task(message, self.setup.layouts(tier_of(message), 1).task)

    def train(self, task: Task) -> Update:
        """Carry out a task with the client's own data; with fewer experts if memory runs out."""
        who = f"{task.who}, round {task.round},"
        return within_memory(lambda k: self._train(replace(task, top_k=k)), task.top_k, who)[0]

    def answer(self, task: Task) -> Message:
        """Carry out a task and return the update in the form that crosses a network."""
        return self.packed(self.train(task), task)

    def packed(self, update: Update, task: Task) -> Message:
        """Return an update in that form."""
        upload = self.setup.experiment.upload
        if upload.error_feedback and update.delta.layout.size:
            return pack_with_residual(update, task, upload, self.state_folder)
        return pack_update(update, upload)

    def train_together(self, tasks: Sequence[Task]) -> list[Ended]:
        """Train the clients of one tier in one pass; see `side_by_side`.

        Raises:
            FedMoEError: one of them cannot; nothing of what they store has changed.
        """
        setup, e = self.setup, self.setup.experiment
        setup.configure_experts(tasks[0].tier)
        begun = [self._local(task) for task in tasks]
        clients = [
            self._trainee(task, local) for task, (local, _) in zip(tasks, begun, strict=True)
        ]
        pad = setup.tokenizer.pad_token_id
        from fedmoe.training.side_by_side import train_side_by_side  # passes are rarely asked for

        updates = train_side_by_side(setup.model, clients, pad, e.rounds, e.seed, self.told)
        both = zip(tasks, updates, begun, strict=True)
        return [Ended(task, update, *local) for task, update, local in both]

    def configure(self, task: Task, adapter: Adapter) -> None:
        """Let the model compute as the task's client does: with its stored form and its subset.

        The subset follows from the client's own data, drawn by (seed, round, client), and from
        what it computes with at the task's k.
        """
        setup, tier = self.setup, self.setup.tier(task.tier)
        setup.configure_experts(task.tier)
        if (subset := setup.subset(task.tier)) is None:
            return
        model, rows = setup.model, self.rows[task.key]
        model.frozen.use(subset.profile or tier.frozen)
        model.load(adapter)
        model.set_budget(task.top_k, task.rescaler)
        path = "round", task.round, "client", task.client, "profile"
        rng = numpy_rng(setup.experiment.seed, *path)
        size, pad = setup.training_of(task.tier).batch_size, setup.tokenizer.pad_token_id
        counts = profile(model, rows, subset.examples, size, pad, rng)
        model.frozen.use(tier.frozen)
        model.kept.keep(counts, subset, offloaded=tier.offload)

    def deployed_adapter(self, task: Task) -> Adapter:
        """Return the adapter that the model computes with outside training, in its layout.

        Where the strategy is personal, it has the part of the task's client; else it is what any
        client without a past would start from.
        """
        strategy = self.setup.experiment.aggregation
        if strategy.personal:
            return self._local(task)[0].start
        layouts = self.setup.layouts(task.tier, task.round)
        return strategy.local(task, layouts, self.setup.initial).start

    def _train(self, task: Task) -> Update:
        setup, e, (local, before) = self.setup, self.setup.experiment, self._local(task)
        self.configure(task, local.start)
        rows = self.rows[task.key]
        update = train_client(
            setup.model,
            rows,
            setup.tokenizer.pad_token_id,
            task,
            setup.training_of(task.tier).on(len(rows)),
            e.rounds,
            e.seed,
            local,
            e.losses,
            self.told,
        )
        return self.closed(Ended(task, update, local, before))

    def closed(self, ended: Ended) -> Update:
        """Store what a client keeps after its round, and return its update.

        Raises:
            WireError: it is not finite.
        """
        task, update, local, before = ended
        if local.own is not None:
            if not local.own.flat.isfinite().all():
                raise WireError(f"{task.who} diverged: its state is not finite")
            home = home_of(self.state_folder, task.client, OWN)
            write_client_state(home, task.round, before, local.own)
        if isinstance(self.rows, OwnData):
            return replace(update, rows=self.rows.of(task.name).counts)
        return update

    def _trainee(self, task: Task, local: Local) -> Trainee:
        rows = self.rows[task.key]
        return Trainee(task, rows, self.setup.training_of(task.tier).on(len(rows)), local)

    def _local(self, task: Task) -> tuple[Local, int]:
        """Return the client's side of a task, and the round that its state is from; 0 for none."""
        layouts, own, before = self.setup.layouts(task.tier, task.round), None, 0
        if layouts.own is not None:
            home = home_of(self.state_folder, task.client, OWN)
            before, own = read_client_state(home, task.round, layouts.own)
        strategy = self.setup.experiment.aggregation
        return strategy.local(task, layouts, self.setup.initial, own if before else None), before
