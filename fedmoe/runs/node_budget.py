"""A node that plans for itself: `budget.name=auto` in a run whose config names no devices.

Before the model is loaded, arithmetic says how its frozen experts are kept and how large a
micro-batch is. At a client's first task a few real steps calibrate the plan; before every further
one the machine is looked at again, and k goes down at once and up only after a while. What k was in
the end stands in the update, which may have a lower one than its task, never a higher one.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace

from fedmoe.budget import Auto, Levels
from fedmoe.budget.auto import CPU, GPU
from fedmoe.budget.calibrate import calibrated, settings_to_measure
from fedmoe.budget.measure import Sample, measure, measure_in_turns
from fedmoe.budget.model import Constants, kept_bytes
from fedmoe.budget.plan import Plan, plan_for
from fedmoe.budget.probe import Link, Machine, probe
from fedmoe.budget.replan import Observed, Standing, ran_out_of_memory, replan, within_memory
from fedmoe.budget.shape import Setting, shape_of
from fedmoe.budget.work import work_at_most, work_on
from fedmoe.config import Experiment
from fedmoe.errors import ConfigError, Fault, FedMoEError
from fedmoe.messages.codec import Message, Task, most_bytes
from fedmoe.models.build import device_of
from fedmoe.models.memory.meta import meta_model
from fedmoe.runs.client_side import ClientSide
from fedmoe.runs.subsets import possible
from fedmoe.training.trial import trial_steps

LOG = logging.getLogger(__name__)
STEPS = 3
"""Measured steps of a setting, after one to warm up."""


def planned_here(e: Experiment) -> Experiment:
    """The experiment with its tiers as this machine can hold them: every k at its most as yet.

    An experiment whose budget is fixed, or planned for devices, is returned as it is.

    Raises:
        ConfigError: nothing of the model fits this machine.
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
    return replace(e, budget=Levels(tiers=tiers))


@dataclass(eq=False)
class Seat:
    """What this machine knows of one of its clients."""

    constants: Constants
    ran_out_at: int | None = None
    """The least k at which memory ran out since the last plan, calibration included."""
    standing: Standing | None = None


@dataclass(eq=False)
class OwnBudget:
    """Gives each task the k that this machine affords now."""

    budget: Auto
    seats: dict[int, Seat] = field(default_factory=dict)
    """By client."""

    def answer(
        self, client: ClientSide, task: Task, deadline_seconds: float | None = None, fewer: int = 0
    ) -> Message:
        """The packed update of a task, carried out with as many experts as fit.

        Args:
            client: the run, with its model.
            task: asks for the most experts that it may take.
            deadline_seconds: the server's, from the task's sending to the update's arrival; the
                experiment's own counts, too. It lowers this round's k alone: what is left of a
                round says nothing of the next one.
            fewer: workers that were killed for want of memory by this task: that many experts
                fewer than would fit by the plan.

        Raises:
            FedMoEError: not even one fits, in memory or in time: the client sits this round out.
        """
        if (seat := self.seats.get(task.client)) is None:
            seat = self.seats[task.client] = self._seat(client, task)
        plan = timed = self._plan(client, task, seat.constants)
        before = seat.standing or Standing(plan.top_k, task.top_k)
        if fewer:
            killed_at = min(before.top_k, task.top_k) - fewer + 1
            seat.ran_out_at = min(seat.ran_out_at or killed_at, killed_at)
        now = seat.standing = replan(before, Observed(plan.top_k, seat.ran_out_at))
        seat.ran_out_at = None
        if now.top_k and deadline_seconds is not None:
            timed = self._plan(client, task, seat.constants, deadline_seconds)
        if not (asked := min(now.top_k, timed.top_k, task.top_k)):
            why = " ".join(timed.reasons) if now.ceiling else "memory ran out with k = 1"
            raise FedMoEError(f"client {task.client} sits out: {why}")
        LOG.info(
            "client %d, round %d: k = %d of %d; %s",
            task.client,
            task.round,
            asked,
            task.top_k,
            timed.reasons[-1],
        )
        message = client.answer(replace(task, top_k=asked))
        if (used := int(json.loads(message.scalars)["top_k"])) < asked:
            seat.ran_out_at = used + 1
        return message

    def _seat(self, client: ClientSide, task: Task) -> Seat:
        """A client's, calibrated."""
        try:
            return Seat(*self._measured(client, task))
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            raise FedMoEError(
                f"client {task.client} sits out: memory ran out in its calibration, even with "
                f"k = 1 ({error}); free some on this machine"
            ) from None

    def _measured(self, client: ClientSide, task: Task) -> tuple[Constants, int | None]:
        """The machine's constants, from real steps on the client's longest batch.

        And the least k at which these ran out of memory; None where they did not.
        """
        client.setup.configure_experts(task.tier)
        model, rows = client.setup.model, client.rows[task.client]
        shape = shape_of(model, client.setup.layouts(task.tier, task.round).model)
        tier = client.setup.experiment.budget.resolved(model.full_top_k)[task.tier]
        work = work_on(rows, client.setup.training_of(task.tier))
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
        """What the machine affords now, within the experiment's deadline and another one."""
        e, budget = client.setup.experiment, self.budget
        deadlines = [s for s in (budget.deadline_seconds, deadline) if s is not None]
        layouts = client.setup.layouts(task.tier, task.round)
        sizes = most_bytes(layouts.task, layouts.update, e.upload)
        tier = e.budget.resolved(client.setup.model.full_top_k)[task.tier]
        work = work_on(client.rows[task.client], client.setup.training_of(task.tier), *sizes)
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
