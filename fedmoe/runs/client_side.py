"""The client side of a run: its own rows, its local training and its state between rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedmoe.budget.replan import within_memory
from fedmoe.errors import WireError
from fedmoe.messages.codec import pack_update, tier_of, unpack_task
from fedmoe.runs.client_state import home_of, read_client_state, write_client_state
from fedmoe.runs.residuals import pack_with_residual
from fedmoe.seeds import numpy_rng
from fedmoe.training.client import train_client
from fedmoe.training.profile import profile

if TYPE_CHECKING:
    from fedmoe.adapter import Adapter
    from fedmoe.aggregation.strategy import Local
    from fedmoe.data.text import Tokens
    from fedmoe.messages.records import Message, Task, Update
    from fedmoe.runs.setup import Setup

OWN = "own"
"""The name under which a client stores its part of a strategy."""


@dataclass(frozen=True, eq=False)
class ClientSide:
    """Carries out tasks with the rows of the clients that are here, and with no other's."""

    setup: Setup
    rows: Mapping[int, Sequence[Tokens]]
    """By client: its own training examples."""
    state_folder: Path | None = None
    """Where clients store what they need in a later round; see `client_state`."""

    def read_task(self, message: Message) -> Task:
        """Return the checked task in a message.

        Raises:
            WireError: the message is no task for a client that is here.
        """
        task = unpack_task(message, self.setup.layouts(tier_of(message), 1).task)
        if task.client not in self.rows:
            clients = f"{min(self.rows, default=0)}..{max(self.rows, default=0)}"
            raise WireError(f"there is no client {task.client}; clients are {clients}")
        return task

    def train(self, task: Task) -> Update:
        """Carry out a task with the client's own data; with fewer experts if memory runs out."""
        who = f"client {task.client}, round {task.round},"
        return within_memory(lambda k: self._train(replace(task, top_k=k)), task.top_k, who)[0]

    def answer(self, task: Task) -> Message:
        """Carry out a task and return the update in the form that crosses a network."""
        upload, update = self.setup.experiment.upload, self.train(task)
        if upload.error_feedback and update.delta.layout.size:
            return pack_with_residual(update, task, upload, self.state_folder)
        return pack_update(update, upload)

    def configure(self, task: Task, adapter: Adapter) -> None:
        """Let the model compute as the task's client does: with its stored form and its subset.

        The subset follows from the client's own data, drawn by (seed, round, client), and from
        what it computes with at the task's k.
        """
        setup, tier = self.setup, self.setup.tier(task.tier)
        setup.configure_experts(task.tier)
        if (subset := setup.subset(task.tier)) is None:
            return
        model, rows = setup.model, self.rows[task.client]
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
        update = train_client(
            setup.model,
            self.rows[task.client],
            setup.tokenizer.pad_token_id,
            task,
            setup.training_of(task.tier),
            e.rounds,
            e.seed,
            local,
            e.losses,
        )
        if local.own is not None:
            if not local.own.flat.isfinite().all():
                raise WireError(f"client {task.client} diverged: its state is not finite")
            home = home_of(self.state_folder, task.client, OWN)
            write_client_state(home, task.round, before, local.own)
        return update

    def _local(self, task: Task) -> tuple[Local, int]:
        """Return the client's side of a task, and the round that its state is from; 0 for none."""
        layouts, own, before = self.setup.layouts(task.tier, task.round), None, 0
        if layouts.own is not None:
            home = home_of(self.state_folder, task.client, OWN)
            before, own = read_client_state(home, task.round, layouts.own)
        strategy = self.setup.experiment.aggregation
        return strategy.local(task, layouts, self.setup.initial, own if before else None), before
