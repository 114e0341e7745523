"""Masked sums around any transport: in one process, or with clients on machines of their own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import SystemRandom
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fedmoe.errors import AggregationError, FedMoEError
from fedmoe.messages.records import Failure
from fedmoe.privacy.masks.collector import Collector, neighbours_of
from fedmoe.privacy.masks.steps import Parties
from fedmoe.privacy.masks.wire import Bounds, Request
from fedmoe.privacy.vector import Vector, stripped
from fedmoe.runs.vectors import bounds_of, expected_clients, mean_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

    from fedmoe.adapter import Adapter, Layout
    from fedmoe.aggregation.mean import Mean
    from fedmoe.config.schema import Experiment
    from fedmoe.messages.records import Task, Update
    from fedmoe.privacy.private_mean import PrivateMean
    from fedmoe.runs.server_side import ServerSide

RESUME = "Round discarded. Resume with `--resume auto` once more clients are back"


class Steps(Protocol):
    """How a round's clients are asked, wherever they are."""

    def ask(
        self, tasks: Sequence[Task], requests: Mapping[int, Request]
    ) -> Iterator[Any | Failure]:
        """Yield what the tasks' clients answer to a step other than `mask`, in order."""
        ...

    def train(self, requests: Mapping[int, Request]) -> None:
        """Take what the next tasks' clients need to mask what they send."""

    def masked(self, vector: Vector, update: Update) -> np.ndarray:
        """Return the masked vector that came with an answer, or make it."""
        ...


class Here:
    """Clients in this process: what happens to their updates here happens on nodes elsewhere."""

    def __init__(self, experiment: Experiment) -> None:
        self.parties = Parties(settings_of(experiment), expected_clients(experiment))
        self.requests: Mapping[int, Request] = {}

    def ask(
        self, tasks: Sequence[Task], requests: Mapping[int, Request]
    ) -> Iterator[Any | Failure]:
        """Yield each client's answer, or why there is none."""
        for task in tasks:
            try:
                yield self.parties.answer(task.client, requests[task.client])
            except FedMoEError as error:
                yield Failure(task.round, task.client, str(error), "masks")

    def train(self, requests: Mapping[int, Request]) -> None:
        """Keep the shares that clients have got."""
        self.requests = requests

    def masked(self, vector: Vector, update: Update) -> np.ndarray:
        """Return a client's vector under its masks."""
        client = update.client
        return self.parties.mask(client, self.requests[client], vector.of(update))


@dataclass(eq=False)
class Meeting:
    """A round under way: who has shared secrets, and what vectors are made of."""

    collector: Collector
    vector: Vector
    bounds: Bounds
    failures: dict[int, Failure]
    """By client: of those who left before they trained."""
    tasks: dict[int, Task]
    """By client."""

    def request(self, step: Any, client: int) -> Request:
        """Return what a client is asked at a step."""
        collector, about = self.collector, self.collector.about.decode()
        if step == "share":
            return Request(step, about, adverts=collector.adverts_for(client))
        if step == "mask":
            return Request(step, about, sealed=collector.sealed_for(client), bounds=self.bounds)
        near = {client, *collector.neighbours[client]}
        return Request(step, about, arrived=tuple(sorted(near & {*collector.arrived})))


@dataclass
class MaskedMean:
    """Takes a strategy's place in the round loop, and a transport's: it sees sums alone."""

    server: ServerSide
    inner: Callable[[Sequence[Task]], Iterator[Update | Failure]]
    """Has the clients train."""
    steps: Steps
    private: PrivateMean | None = None
    report: dict[str, Any] = field(default_factory=dict)
    counts: np.ndarray | None = None
    """int64 (layers, experts): the last round's."""
    meeting: Meeting | None = None

    @property
    def strategy(self) -> Mean:
        """Return the strategy whose sums are masked."""
        return mean_of(self.server.setup.experiment)

    moves_alone: ClassVar[bool] = False
    """A round without updates has no sum."""

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Update | Failure]:
        """Yield one answer per task, in order, of which masks leave only that it is there.

        Raises:
            FedMoEError: too few clients are there to hide one among them.
        """
        if not tasks:
            return
        meeting = self.meeting = self._meet(tasks)
        staying = [task for task in tasks if task.client not in meeting.failures]
        self.steps.train({t.client: meeting.request("mask", t.client) for t in staying})
        answers = iter(self.inner(staying))
        for task in tasks:
            answer = meeting.failures.get(task.client) or next(answers)
            if isinstance(answer, Failure):
                yield answer
                continue
            try:
                masked = self.steps.masked(meeting.vector, answer)
                meeting.collector.add(task.client, masked)
            except FedMoEError as error:
                yield Failure(task.round, task.client, str(error), "masks")
                continue
            yield replace(stripped(answer), num_bytes=8 * meeting.vector.length)
        assert next(answers, None) is None, "more answers than tasks"

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        """Return the next state, once every update has been masked.

        Raises:
            AggregationError: too few clients stayed.
        """
        number = sum(1 for _ in updates)
        assert self.meeting is not None
        meeting, collector = self.meeting, self.meeting.collector
        staying = [meeting.tasks[client] for client in sorted(collector.arrived)]
        requests = {task.client: meeting.request("reveal", task.client) for task in staying}
        failures = []
        for task, answer in zip(staying, self.steps.ask(staying, requests), strict=True):
            if isinstance(answer, Failure):
                failures.append(answer)
            else:
                collector.reveals[task.client] = answer
        try:
            total = collector.unmasked()
        except AggregationError as error:
            why = f". The first reason: {failures[0].reason}" if failures else ""
            said = f"round {staying[0].round}: {error}{why}. {RESUME}"
            raise AggregationError(said) from error
        self.counts = meeting.vector.counts(total)
        self.meeting = None
        state, self.report = meeting.vector.next_state(adapter, total, number)
        return state

    def _meet(self, tasks: Sequence[Task]) -> Meeting:
        """Have the clients exchange keys and shares."""
        settings = settings_of(self.server.setup.experiment)
        # A round that is done again has other keys, so that nothing of the first serves in it.
        about = f"{self.server.run_id}|{tasks[0].round}|{secrets.token_hex(8)}"
        failures: dict[int, Failure] = {}
        first = {task.client: Request("advertise", about) for task in tasks}
        adverts = self._heard(tasks, first, failures)
        self._check_number(tasks, [*adverts], failures)
        number = len(adverts) - 1 if settings.neighbours is None else settings.neighbours
        order = SystemRandom().sample(range(len(adverts)), len(adverts))
        neighbours = neighbours_of(sorted(adverts), number, order)
        bounds, vector = bounds_of(self.server, tasks, len(adverts), self.private)
        threshold = settings.threshold_of(min(map(len, neighbours.values())))
        collector = Collector(about.encode(), neighbours, threshold, vector.length, adverts)
        by_client = {task.client: task for task in tasks}
        meeting = Meeting(collector, vector, bounds, failures, by_client)
        there = [task for task in tasks if task.client in adverts]
        second = {task.client: meeting.request("share", task.client) for task in there}
        collector.sealed = self._heard(there, second, failures)
        self._check_number(tasks, [*collector.sealed], failures)
        return meeting

    def _heard(
        self, tasks: Sequence[Task], requests: Mapping[int, Request], failures: dict[int, Failure]
    ) -> dict[int, Any]:
        """Return the answers to a step by client, and note the failures."""
        answers = zip(tasks, self.steps.ask(tasks, requests), strict=True)
        found = {task.client: answer for task, answer in answers}
        failures |= {c: a for c, a in found.items() if isinstance(a, Failure)}
        return {c: a for c, a in found.items() if not isinstance(a, Failure)}

    def _check_number(
        self, tasks: Sequence[Task], there: Sequence[int], failures: Mapping[int, Failure]
    ) -> None:
        """Refuse a round of so few that none is hidden, or fewer than clients go on with."""
        e = self.server.setup.experiment
        least = max(3, 1 + settings_of(e).least(expected_clients(e)))
        if len(there) >= least:
            return
        gone = f". The first reason: {next(iter(failures.values())).reason}" if failures else ""
        raise FedMoEError(
            f"secure_aggregation: {len(there)} of {len(tasks)} clients take part in round "
            f"{tasks[0].round}; with fewer than {least} a sum tells too much of each. {RESUME}, or "
            f"raise clients_per_round{gone}"
        )

    def extra_state(self, state: Layout) -> Layout | None:
        """Return the strategy's own."""
        return self.strategy.extra_state(state)

    def discount(self, update: Update, staleness: int) -> Update:
        """Return the update: there are no late ones."""
        return update

    def step(self, rule: Any, old: Any, proposed: Any, memory: Any) -> Any:
        """Return the strategy's step: it sees the sums' mean alone."""
        return self.strategy.step(rule, old, proposed, memory)
