"""Buffered asynchrony for the round loop: which updates the server's next step is made of.

A "round" is one step of the server. Its tasks are those of the clients that arrive next in virtual
time; each starts from the adapter that the server had when the client began. Nothing else of the
loop changes: transports, checks and records see tasks and updates as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fedmoe.config.faults import parse_faults
from fedmoe.devices.timeline import timeline
from fedmoe.messages.records import Task
from fedmoe.runs.costs import expected_time, tier_costs
from fedmoe.seeds import numpy_rng

if TYPE_CHECKING:
    from fedmoe.devices.timeline import Arrival, Job
    from fedmoe.rounds import Member, Send, ServerState
    from fedmoe.runs.server_side import ServerSide


@dataclass(eq=False)
class Buffered:
    """Plans one step of the server after another; the same plan on every machine.

    A client is chosen among those that are reachable, not at work, not in the buffer, and have not
    started from the server's present adapter: its randomness comes from `(seed, round, client)`, so
    that it would send the same update twice. Where nobody is left, a place waits for the server's
    next step. Durations are what a round is expected to take, with the most bytes it can send.
    """

    members: Sequence[Member]
    send: Send
    seconds: Callable[[Member, int], float]
    """Virtual seconds of a member's task of a round."""
    concurrency: int
    buffer_size: int
    num_rounds: int
    seed: int
    clock: float = 0.0
    """Virtual seconds at which the server's step was made that was planned last."""
    states: dict[int, ServerState] = field(default_factory=dict)
    """By version: the present one, and those that a client at work started from; no memory."""

    def __post_init__(self) -> None:
        self.unavailable: set[int] = set()
        """In the buffer, or started from the present version."""
        self.at_work: list[Job] = []
        self.arrivals: Iterator[Arrival] = timeline(
            self._choose,
            self._duration,
            concurrency=min(self.concurrency, len(self.members)),
            buffer_size=self.buffer_size,
            num_updates=self.num_rounds,
        )

    def plan(self, state: ServerState) -> list[Task]:
        """The tasks of the server's next step, by client id."""
        self.states[state.round] = replace(state, memory={})
        jobs = self._step(state.round)
        tasks = [self._task(job) for job in sorted(jobs, key=lambda j: j.client)]
        needed = {job.version for job in self.at_work} | {state.round}
        self.states = {v: s for v, s in self.states.items() if v in needed}
        return tasks

    def skip(self, state: ServerState, states: dict[int, ServerState]) -> None:
        """Go to where a planner was after the step that made `state`; `states` are what it kept."""
        for version in range(state.round):
            self._step(version)
        self.states = dict(states)

    def _step(self, version: int) -> list[Job]:
        """The jobs that arrive until the buffer is full, in the order of arrival."""
        self.unavailable.clear()
        jobs = []
        for arrival in self.arrivals:
            jobs.append(arrival.job)
            self.at_work.remove(arrival.job)
            self.unavailable.add(arrival.job.client)
            if arrival.fills_buffer:
                self.clock = arrival.finish_seconds
                break
        return jobs

    def _task(self, job: Job) -> Task:
        member, state = self.members[job.client], self.states[job.version]
        return Task(
            round=job.version + 1,
            client=member.client,
            tier=member.tier,
            top_k=member.top_k,
            rescaler=state.rescalers[member.tier],
            adapter=self.send(state.adapter, member),
        )

    def _choose(self, number: int, busy: frozenset[int]) -> int | None:
        there = (i for i, member in enumerate(self.members) if member.availability > 0)
        free = [i for i in there if i not in busy | self.unavailable]
        if not free:
            return None
        draws = numpy_rng(self.seed, "job", number, "available").random(len(self.members))
        # Where nobody is reachable someone is asked all the same, and waited for.
        reachable = [i for i in free if draws[i] < self.members[i].availability] or free
        return int(numpy_rng(self.seed, "job", number).choice(reachable))

    def _duration(self, job: Job) -> float:
        self.unavailable.add(job.client)
        self.at_work.append(job)
        return self.seconds(self.members[job.client], job.version + 1)


def buffered_of(server: ServerSide) -> Buffered | None:
    """Return the planner of an asynchronous run; None for one that goes by rounds."""
    e = server.setup.experiment
    if not e.aggregation.asynchronous:
        return None
    costs, faults = tier_costs(server), parse_faults(e.faults)

    def seconds(member: Member, round: int) -> float:
        time = expected_time(server, member.client, member.tier, costs[member.tier])
        return time.seconds * faults.slowdown(e.seed, round, member.client)

    return Buffered(
        server.members,
        server.send_to,
        seconds,
        concurrency=server.clients_per_round,
        buffer_size=e.aggregation.updates_per_step(server.clients_per_round),
        num_rounds=e.rounds,
        seed=e.seed,
    )
