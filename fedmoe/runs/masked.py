"""Masked sums around any transport: in one process, or with clients on machines of their own."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import SystemRandom
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fedmoe.errors import AggregationError, FedMoEError, FedMoEWarning
from fedmoe.messages.records import Failure
from fedmoe.privacy.masks.collector import Collector, both_of, left_alone, neighbours_of, pair_of
from fedmoe.privacy.masks.party import Refused, usable
from fedmoe.privacy.masks.settings import expected_clients
from fedmoe.privacy.masks.steps import Parties
from fedmoe.privacy.masks.wire import Bounds, Request
from fedmoe.privacy.vector import Vector, stripped
from fedmoe.rounds import check_quorum
from fedmoe.runs.vectors import bounds_of, mean_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

    from fedmoe.adapter import Adapter, Layout
    from fedmoe.aggregation.mean import Mean
    from fedmoe.config.schema import Experiment
    from fedmoe.messages.records import Task, Update
    from fedmoe.privacy.private_mean import PrivateMean
    from fedmoe.runs.server_side import ServerSide

MOST_PATIENT = 3
"""Times that a round begins anew for clients who refuse each other, before both must leave it."""
NO_KEY = "it sent a key that nobody can have"
RESUME = "Round discarded. Resume with `--resume auto` once more clients are back"


class Steps(Protocol):
    """How a round's clients are asked, wherever they are."""

    def ask(
        self, tasks: Sequence[Task], requests: Mapping[int, Request]
    ) -> Iterator[Any | Failure]:
        """Yield what the tasks' clients answer to a step other than `mask`, in order."""
        ...

    def train(self, requests: Mapping[int, Request]) -> None:
        """Take what the next tasks' clients need to know of what they send."""

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
        """Keep what clients are told."""
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
    """By client."""
    tasks: dict[int, Task]
    """By client."""

    def request(self, step: Any, client: int) -> Request:
        """Return what a client is asked at a step."""
        collector, about = self.collector, self.collector.about.decode()
        if step == "share":
            adverts = collector.adverts_for(client)
            return Request(step, about, adverts=adverts, threshold=collector.threshold)
        if step == "open":
            return Request(step, about, sealed=collector.sealed_for(client))
        if step == "mask":
            return Request(step, about, bounds=self.bounds)
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
    charge: Callable[[], None] = lambda: None
    """Called before a sum is unmasked."""

    def reset(self) -> None:
        """Forget what the last round told, as a round begins that may tell nothing."""
        self.report, self.counts, self.meeting = {}, None, None

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
        gone = dict(meeting.failures)
        staying = [task for task in tasks if task.client not in gone]
        self.steps.train({t.client: meeting.request("mask", t.client) for t in staying})
        answers = iter(self.inner(staying))
        for task in tasks:
            answer = gone.get(task.client) or next(answers)
            if isinstance(answer, Failure):
                meeting.failures[task.client] = answer
                yield answer
                continue
            try:
                masked = self.steps.masked(meeting.vector, answer)
                meeting.collector.add(task.client, masked)
            except FedMoEError as error:
                failure = Failure(task.round, task.client, str(error), "masks")
                meeting.failures[task.client] = failure
                yield failure
                continue
            yield replace(stripped(answer), num_bytes=8 * meeting.vector.length)
        assert next(answers, None) is None, "more answers than tasks"

    def combine(self, adapter: Adapter, updates: Iterable[Update], num_clients: int = 0) -> Adapter:
        """Return the next state, once every update has been masked.

        Raises:
            FedMoEError: fewer clients stayed than the quorum, or than can unmask their sum.
        """
        number = sum(1 for _ in updates)
        assert self.meeting is not None
        meeting, collector = self.meeting, self.meeting.collector
        quorum, missing = self.server.setup.experiment.quorum, [*meeting.failures.values()]
        round = next(iter(meeting.tasks.values())).round
        # Before it is revealed: a sum that is known is not taken back.
        check_quorum(round, len(meeting.tasks), missing, quorum)
        staying = [meeting.tasks[client] for client in sorted(collector.arrived)]
        requests = {task.client: meeting.request("reveal", task.client) for task in staying}
        failures = []
        for task, answer in zip(staying, self.steps.ask(staying, requests), strict=True):
            if isinstance(answer, Failure):
                failures.append(answer)
            else:
                collector.reveals[task.client] = answer
        self.charge()
        try:
            total = collector.unmasked()
        except AggregationError as error:
            why = f". The first reason: {failures[0].reason}" if failures else ""
            raise AggregationError(f"round {round}: {error}{why}. {RESUME}") from error
        for helper, clients in sorted(collector.wrong.items()):
            said = f"round {round}: client {helper} revealed shares that do not fit, of the "
            said += f"secrets of clients {sorted(clients)}, or these had given it wrong ones"
            warnings.warn(said, FedMoEWarning, stacklevel=2)
        self.counts = meeting.vector.counts(total)
        self.meeting = None
        state, self.report = meeting.vector.next_state(adapter, total, number)
        return state

    def _meet(self, tasks: Sequence[Task]) -> Meeting:
        """Have the clients exchange keys and shares, anew as long as some refuse others."""
        failures: dict[int, Failure] = {}
        pairs: set[frozenset[int]] = set()
        patience = MOST_PATIENT
        while True:
            meeting, refused = self._attempt(tasks, failures, pairs)
            new = {pair_of(c, other) for c, r in refused.items() for other in r.clients}
            if not new:
                return meeting
            pairs, patience = pairs | new, patience - 1
            if patience < 0:
                self._refuse(tasks, both_of(new), failures)

    def _refuse(
        self,
        tasks: Sequence[Task],
        against: Mapping[int, Iterable[int]],
        failures: dict[int, Failure],
    ) -> None:
        """Note that clients leave the round, because of others with whom they share nothing."""
        for client, others in against.items():
            said = f"its keys or shares are refused by clients {sorted(others)}, or it refuses "
            failures[client] = Failure(tasks[0].round, client, f"{said}theirs", "masks")

    def _attempt(
        self, tasks: Sequence[Task], failures: dict[int, Failure], pairs: set[frozenset[int]]
    ) -> tuple[Meeting, Mapping[int, Refused]]:
        """Return the clients that have exchanged keys and shares, and who of them refuses whom.

        Args:
            tasks: the round's.
            failures: of those who have left; others are added.
            pairs: clients of whom one has refused the other, and who are no neighbours.
        """
        settings = settings_of(self.server.setup.experiment)
        # A round that is done again has other keys, so that nothing of the first serves in it.
        about = f"{self.server.run_id}|{tasks[0].round}|{secrets.token_hex(8)}"
        there = [task for task in tasks if task.client not in failures]
        first = {task.client: Request("advertise", about) for task in there}
        adverts = self._heard(there, first, failures)
        for client in [client for client, advert in adverts.items() if not usable(advert)]:
            failures[client] = Failure(tasks[0].round, client, NO_KEY, "masks")
        alone = left_alone([c for c in adverts if c not in failures], pairs, settings.threshold_of)
        self._refuse(tasks, alone, failures)
        adverts = {client: a for client, a in adverts.items() if client not in failures}
        self._check_number(tasks, [*adverts], failures)
        number = len(adverts) - 1 if settings.neighbours is None else settings.neighbours
        order = SystemRandom().sample(range(len(adverts)), len(adverts))
        neighbours = neighbours_of(sorted(adverts), number, order)
        bounds, vector = bounds_of(self.server, tasks, len(adverts), self.private)
        threshold = settings.threshold_of(min(map(len, neighbours.values())))
        near = {c: [o for o in n if pair_of(c, o) not in pairs] for c, n in neighbours.items()}
        collector = Collector(about.encode(), near, threshold, vector.length, adverts)
        meeting = Meeting(collector, vector, bounds, failures, {t.client: t for t in tasks})
        for step in ("share", "open"):
            there = [task for task in tasks if task.client not in failures]
            requests = {task.client: meeting.request(step, task.client) for task in there}
            heard = self._heard(there, requests, failures)
            self._check_number(tasks, [*heard], failures)
            refused = {c: a for c, a in heard.items() if isinstance(a, Refused) and a.clients}
            if refused or step == "open":
                break
            collector.sealed = heard
        return meeting, refused

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
