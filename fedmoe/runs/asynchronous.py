"""Buffered asynchrony for the round loop: which updates the server's next step is made of.

A "round" is one step of the server. Its tasks are those of the clients that arrive next: in virtual
time where tiers have `devices`, else as their nodes really answer. Each starts from the adapter
that the server had when the client began. Nothing else of the loop changes: transports, checks and
records see tasks and updates as ever.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedmoe.config.faults import parse_faults
from fedmoe.devices.timeline import Clock, Finish, Job, Timeline, Virtual
from fedmoe.errors import FedMoEError, FedMoEWarning
from fedmoe.messages.records import Task, Update
from fedmoe.runs.costs import expected_time, tier_costs
from fedmoe.runs.roster import Roster
from fedmoe.runs.workers import Stream
from fedmoe.seeds import numpy_rng

if TYPE_CHECKING:
    from fedmoe.devices.timeline import Arrival
    from fedmoe.rounds import Member, Send, ServerState
    from fedmoe.runs.server_side import ServerSide
    from fedmoe.runs.workers import Workers


@dataclass(eq=False)
class Buffered:
    """Plans one step of the server after another.

    A client is chosen among those that are reachable, not at work, and have not arrived since the
    server's last step: with the same adapter it would send the same update, or fail as it did, as
    its randomness comes from `(seed, round, client)`. Where nobody is left, a place waits for the
    server's next step.
    """

    members: Sequence[Member]
    send: Send
    make_clock: Callable[[Buffered], Clock]
    concurrency: int
    buffer_size: int
    seed: int
    states: dict[int, ServerState] = field(default_factory=dict)
    """By version: the present one, and those that a client at work started from; no memory."""

    def __post_init__(self) -> None:
        self.arrived: set[int] = set()
        """Since the server's last step: in the buffer, or failed."""
        self.timeline = Timeline(
            self._choose,
            self.make_clock(self),
            concurrency=self.concurrency,
            buffer_size=self.buffer_size,
        )

    @property
    def clock(self) -> float:
        """The seconds at which the server's step was made that was planned last."""
        return self.timeline.now

    def plan(self, state: ServerState) -> list[Task]:
        """Return the tasks of the server's next step, by client id, once they are done.

        Raises:
            FedMoEError: nobody is at work, and nobody may start.
        """
        self.states[state.round] = replace(state, memory={}, centre={})
        self.arrived.clear()
        arrivals = self.timeline.step(lambda arrival: self.arrived.add(arrival.job.client))
        self._check(state.round + 1, arrivals)
        jobs = sorted((arrival.job for arrival in arrivals), key=lambda job: job.client)
        tasks = [self.task(job) for job in jobs]
        needed = {job.version for job in self.timeline.at_work} | {state.round}
        self.states = {v: s for v, s in self.states.items() if v in needed}
        return tasks

    def resume(
        self, state: ServerState, states: Mapping[int, ServerState], position: Mapping[str, Any]
    ) -> None:
        """Go to where a planner was after the step that made `state`.

        Those who were at work start again, with the adapter that they started from. A client's
        update is repeatable, so that it is the one that was lost.
        """
        self.states = dict(states)
        self.timeline.resume(state.round, **position)

    def task(self, job: Job) -> Task:
        """Return the task that a job carries out."""
        member, state = self.members[job.client], self.states[job.version]
        return Task(
            round=job.version + 1,
            client=member.client,
            tier=member.tier,
            top_k=member.top_k,
            rescaler=state.rescalers[member.tier],
            adapter=self.send(state.adapter, member),
            name=member.name,
        )

    def free(self, busy: frozenset[int] = frozenset()) -> list[int]:
        """Return the places of the members that may start, reachable or not."""
        there = (i for i, member in enumerate(self.members) if member.availability > 0)
        return [i for i in there if i not in busy | self.arrived]

    def _choose(self, number: int, busy: frozenset[int]) -> int | None:
        free = [i for i in self.free(busy) if self.timeline.clock.reachable(i)]
        if not free:
            return None
        draws = numpy_rng(self.seed, "job", number, "available").random(len(self.members))
        # Where nobody is reachable someone is asked all the same, and waited for.
        reachable = [i for i in free if draws[i] < self.members[i].availability] or free
        return int(numpy_rng(self.seed, "job", number).choice(reachable))

    def _check(self, number: int, arrivals: Sequence[Arrival]) -> None:
        """Refuse a step that nobody answered, and warn of one that nobody is left to fill."""
        if not arrivals:
            raise FedMoEError(
                f"round {number}: no client is at work, and none that could start is there. Start "
                "the missing nodes, and resume with `--resume auto`"
            )
        counted = sum(arrival.counts for arrival in arrivals)
        if 0 < counted < self.buffer_size:  # without any, the loop says why they all failed
            warnings.warn(
                f"round {number}: {counted} updates in place of {self.buffer_size}: every other "
                "client has failed or is not there; lower aggregation.buffer_size",
                FedMoEWarning,
                stacklevel=2,
            )


class Live:
    """The clock of real nodes: a job ends when its node has answered."""

    def __init__(self, stream: Stream, plan: Buffered) -> None:
        self.stream, self.plan = stream, plan
        self.jobs: dict[int, Job] = {}
        """By client: at work."""
        self.looked = time.monotonic()

    def reachable(self, client: int) -> bool:
        """Return whether a node is idle that serves the member at that place."""
        return self.stream.reachable(self.plan.members[client])

    def start(self, job: Job) -> None:
        """Send the job's task to its node."""
        task = self.plan.task(job)
        self.jobs[task.client] = job
        self.stream.begin(task)

    def next(self) -> Finish | None:
        """Return the job whose answer arrived next, if one has within a moment."""
        answer, now = self.stream.next(), time.monotonic()
        if answer is None:
            return None
        # Seconds of the run: a resumed one continues where it was.
        seconds, self.looked = self.plan.clock + now - self.looked, now
        return Finish(seconds, self.jobs.pop(answer.client), isinstance(answer, Update))

    def wait(self) -> bool:
        """Wait for the node of a client that may start."""
        return self.stream.wait([self.plan.members[i] for i in self.plan.free()])


def goes_live(experiment: Any) -> bool:
    """Return whether a run is asynchronous and goes by real time, which needs nodes."""
    return experiment.aggregation.asynchronous and not experiment.devices


def buffered_of(server: ServerSide, workers: Workers) -> Buffered | None:
    """Return the planner of an asynchronous run; None for one that goes by rounds.

    The workers of one that goes by real time are a `Stream`.
    """
    e = server.setup.experiment
    if not e.aggregation.asynchronous:
        return None

    def clock(plan: Buffered) -> Clock:
        if not goes_live(e):
            return _virtual(server, members)
        assert isinstance(workers, Stream), f"{type(workers).__name__} carries out whole rounds"
        return Live(workers, plan)

    members = server.members.everyone if isinstance(server.members, Roster) else server.members
    return Buffered(
        members,
        server.send_to,
        clock,
        concurrency=server.clients_per_round,
        buffer_size=e.aggregation.updates_per_step(server.clients_per_round),
        seed=e.seed,
    )


def _virtual(server: ServerSide, members: Sequence[Member]) -> Virtual:
    """Return the clock of the tiers' devices: what a round is expected to take, with the most bytes
    that it can send."""
    e = server.setup.experiment
    costs, faults = tier_costs(server), parse_faults(e.faults)

    def seconds(job: Job) -> float:
        member = members[job.client]
        time = expected_time(server, member.client, member.tier, costs[member.tier])
        return time.seconds * faults.slowdown(e.seed, job.version + 1, member.client)

    return Virtual(seconds)
