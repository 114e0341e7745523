"""The budget of a node that plans for itself: `budget.name=auto`, and a config without devices.

Before the model is loaded, arithmetic determines how frozen experts are stored and the size of a
micro-batch. At a client's first task a few real steps calibrate the plan. Before every later task
the machine is probed again, and k goes down at once, but up only after a while. The update states
the k that was used, which may be lower than its task's and never higher.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fedmoe.budget import Auto, Levels
from fedmoe.budget.auto import CPU, GPU
from fedmoe.budget.calibrate import calibrated, settings_to_measure
from fedmoe.budget.measure import measure, measure_in_turns
from fedmoe.budget.model import kept_bytes
from fedmoe.budget.plan import plan_for
from fedmoe.budget.probe import Link, probe
from fedmoe.budget.replan import Observed, Standing, ran_out_of_memory, replan, within_memory
from fedmoe.budget.shape import shape_of
from fedmoe.budget.work import work_at_most, work_on
from fedmoe.errors import ConfigError, Fault, FedMoEError
from fedmoe.messages.codec import most_bytes
from fedmoe.models.build import device_of
from fedmoe.models.memory.meta import meta_model
from fedmoe.runs.subsets import possible
from fedmoe.training.trial import trial_steps

if TYPE_CHECKING:
    from fedmoe.budget.measure import Sample
    from fedmoe.budget.model import Constants
    from fedmoe.budget.plan import Plan
    from fedmoe.budget.probe import Machine
    from fedmoe.budget.shape import Setting
    from fedmoe.config import Experiment
    from fedmoe.messages.records import Message, Task
    from fedmoe.runs.client_side import ClientSide

LOG = logging.getLogger(__name__)
STEPS = 3
"""Measured steps of a setting, after a first one that is not measured."""


def planned_here(e: Experiment) -> Experiment:
    """Return the experiment with tiers that fit this machine, each with its largest k so far.

    If its budget is fixed, or planned for devices, the experiment is returned as it is.

    Raises:
        ConfigError: the model does not fit this machine, even with k = 1.
    """
    if not isinstance(e.budget, Auto) or e.devices:
        return e
    model, machine = meta_model(e.model, e.adapter, e.gating), probe(device_of(e.model))
    layouts = e.aggregation.layouts(model.layout, 1)
    shape = shape_of(model, layouts.model, on_gpu=machine.on_gpu)
    plan = plan_for(
        shape,
        work_at_most(e.text.max_length, e.training),
        machine,
        GPU if machine.on_gpu else CPU,
        share=e.budget.memory_share,
        outcomes=possible(e, model, on_its_own=True),
    )
    if plan.choice is None:
        raise ConfigError("budget", [Fault("budget.name", " ".join(plan.reasons))])
    fixed = e.budget.fixed(dict.fromkeys(e.budget.resolved(shape.top_k), plan), shape.top_k)
    most = e.budget.resolved(shape.top_k)
    tiers = {name: replace(tier, top_k=most[name].top_k) for name, tier in fixed.tiers.items()}
    return replace(e, budget=Levels(tiers=tiers, default=e.budget.default))


@dataclass(eq=False)
class Calibrated:
    """The measured constants of one client on this machine, and its current k."""

    constants: Constants
    ran_out_at: int | None = None
    """The smallest k at which memory ran out since the last plan, calibration included."""
    standing: Standing | None = None


@dataclass(eq=False)
class OwnBudget:
    """Assigns each task the k that this machine can afford now."""

    budget: Auto
    clients: dict[int, Calibrated] = field(default_factory=dict)
    """By client."""

    def answer(
        self, client: ClientSide, task: Task, deadline_seconds: float | None = None, fewer: int = 0
    ) -> Message:
        """Return the packed update of a task, carried out with as many experts as fit.

        Args:
            task: states the largest k that may be used.
            deadline_seconds: the server's, from the task's sending to the update's arrival; the
                experiment's own counts, too. It lowers the k of this round alone: the time left in
                one round says nothing about the next.
            fewer: workers that this task cost for want of memory; as many experts are left out of
                those that would fit by the plan.

        Raises:
            FedMoEError: not even one expert fits, in memory or in time: the client is skipped.
        """
        if (known := self.clients.get(task.client)) is None:
            known = self.clients[task.client] = self._calibrated(client, task)
        plan = timed = self._plan(client, task, known.constants)
        before = known.standing or Standing(plan.top_k, task.top_k)
        if fewer:
            killed_at = min(before.top_k, task.top_k) - fewer + 1
            known.ran_out_at = min(known.ran_out_at or killed_at, killed_at)
        now = known.standing = replan(before, Observed(plan.top_k, known.ran_out_at))
        known.ran_out_at = None
        if now.top_k and deadline_seconds is not None:
            timed = self._plan(client, task, known.constants, deadline_seconds)
        if not (top_k := min(now.top_k, timed.top_k, task.top_k)):
            why = " ".join(timed.reasons) if now.ceiling else "memory ran out with k = 1"
            raise FedMoEError(f"client {task.client} is skipped in this round: {why}")
        LOG.info(
            "client %d, round %d: k = %d of %d; %s",
            task.client,
            task.round,
            top_k,
            task.top_k,
            timed.reasons[-1],
        )
        message = client.answer(replace(task, top_k=top_k))
        if (used := int(json.loads(message.scalars)["top_k"])) < top_k:
            known.ran_out_at = used + 1
        return message

    def _calibrated(self, client: ClientSide, task: Task) -> Calibrated:
        try:
            return Calibrated(*self._measured(client, task))
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            raise FedMoEError(
                f"client {task.client} is skipped in this round: memory ran out in its "
                f"calibration, even with k = 1 ({error}); free some on this machine"
            ) from None

    def _measured(self, client: ClientSide, task: Task) -> tuple[Constants, int | None]:
        """Measure the machine's constants by real steps on the client's longest batch.

        Also return the smallest k at which memory ran out, or None if it did not.
        """
        client.setup.configure_experts(task.tier)
        model, rows = client.setup.model, client.rows[task.client]
        shape = shape_of(model, client.setup.layouts(task.tier, task.round).model)
        tier = client.setup.experiment.budget.resolved(model.full_top_k)[task.tier]
        work = work_on(rows, client.setup.training_of(task.tier).on(len(rows)))
        work = replace(work, frozen=tier.frozen, offload=tier.offload, subset=tier.subset)
        step = trial_steps(model, rows, client.setup.tokenizer.pad_token_id)

        def take(setting: Setting) -> Sample:
            kept = round(kept_bytes(shape, setting))
            return measure(step, setting, STEPS, model.device, kept)

        def at(k: int) -> Constants:
            settings = settings_to_measure(work.setting(k, longest=True), k)
            return calibrated(shape, measure_in_turns(take, settings))

        most, who = min(task.top_k, shape.top_k), f"client {task.client}, calibration,"
        constants, k = within_memory(at, most, who)
        return constants, k + 1 if k < most else None

    def _plan(
        self, client: ClientSide, task: Task, constants: Constants, deadline: float | None = None
    ) -> Plan:
        """Plan what the machine can afford now, within the experiment's deadline and another."""
        e, budget = client.setup.experiment, self.budget
        deadlines = [s for s in (budget.deadline_seconds, deadline) if s is not None]
        layouts = client.setup.layouts(task.tier, task.round)
        sizes = most_bytes(layouts.task, layouts.update, e.upload)
        tier = e.budget.resolved(client.setup.model.full_top_k)[task.tier]
        rows = client.rows[task.client]
        work = work_on(rows, client.setup.training_of(task.tier).on(len(rows)), *sizes)
        work = replace(work, frozen=tier.frozen, offload=tier.offload, subset=tier.subset)
        machine: Machine = probe(client.setup.model.device, self._link())
        return plan_for(
            shape_of(client.setup.model, layouts.model),
            work,
            machine,
            constants,
            deadline_seconds=min(deadlines, default=None),
            share=budget.memory_share,
            most_top_k=task.top_k,
            loaded=True,
            settled=True,
        )

    def _link(self) -> Link | None:
        down, up = self.budget.downlink_bytes_per_second, self.budget.uplink_bytes_per_second
        return Link(down or float("inf"), up or float("inf")) if down or up else None
