"""The sight of a run's server: all, sums under masks, or what a privacy budget leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from secrets import SystemRandom
from typing import TYPE_CHECKING, Any

from fedmoe.errors import ConfigError, Fault
from fedmoe.privacy.accountant import Accountant, Spent
from fedmoe.privacy.private_mean import PrivateMean
from fedmoe.rounds import Observer
from fedmoe.runs.masked import Here, MaskedMean
from fedmoe.runs.vectors import mean_of, mechanism_of, settings_of

if TYPE_CHECKING:
    from fedmoe.aggregation.strategy import Aggregator
    from fedmoe.messages.records import Task, Update
    from fedmoe.rounds import Choose, Member, ServerState, Transport
    from fedmoe.runs.server_side import ServerSide
    from fedmoe.runs.workers import Workers

Write = Callable[..., None]
"""Notes what is known of a round; see `Recorder.summed`."""

KIND = "private"
"""The kind of the ledger's lines that say what rounds have spent."""
IN_CLEAR = (
    "who took part in a round and when, with its tier and k, whether it failed and why, and how "
    "many took part and how long it took (ledger.jsonl, the page's tables of clients, trackers: "
    "keep them at the server, or set privacy.sampling to 'known', which counts on no secrecy)",
    "how many clients there are, and in which tiers",
    "the server's own test and validation rows, its scores on them, and which adapter is best by "
    "them (evaluation.every=0 makes none but the last)",
)
"""Facts that a run that hides its clients still tells; the files it is in stay at the server."""
HIDDEN_NOT = "; ".join(IN_CLEAR)
SCORES = "scores on clients' own rows, where their node configs report them"


@dataclass(eq=False)
class Sight(Observer):
    """How a run's rounds are made where nothing is hidden; the base of those that hide something.

    It stands between the session and the round loop, and is the first observer of each round.
    """

    server: ServerSide
    workers: Workers

    @property
    def aggregator(self) -> Aggregator:
        """Return what makes the next state."""
        return self.server.setup.experiment.aggregation

    @property
    def transport(self) -> Transport:
        """Return who trains."""
        return self.workers

    @property
    def choose(self) -> Choose | None:
        """Return who takes part in a round; None where the run's seed draws them."""
        return None

    def shown(self, update: Update) -> Update:
        """Return an update as observers see it."""
        return update

    def why_stop(self) -> str:
        """Return why no further round may begin; empty if it may."""
        return ""

    @property
    def notes(self) -> list[str]:
        """Return what is hidden from whom, and what is not, in sentences."""
        return []


@dataclass(eq=False)
class MaskedRun(Sight):
    """A run whose server sees sums alone, in clear or, with `private`, under noise."""

    masked: MaskedMean
    write: Write

    def planned(self, tasks: Sequence[Task]) -> None:
        self.masked.reset()

    @property
    def aggregator(self) -> Aggregator:
        return self.masked

    @property
    def transport(self) -> Transport:
        return self.masked

    def shown(self, update: Update) -> Update:
        return update if update.withheld else replace(update, withheld=True)

    def finished(self, state: ServerState) -> None:
        if self.masked.report:
            self.write(self.masked.report, self.masked.counts)

    @property
    def notes(self) -> list[str]:
        clear = f"secure aggregation: not hidden are {HIDDEN_NOT}; {SCORES}"
        return [*masked_notes(self.server), clear]


def masked_notes(server: ServerSide) -> list[str]:
    """Return what masks hide from the server of a run, and what it can no longer check."""
    stay = f"{settings_of(server.setup.experiment).threshold:.0%} of its neighbours"
    notes = [
        "secure aggregation: the server sees sums alone, of changes, weights, counts, losses and "
        "examples. What it can no longer refuse is a single update that is damaged, too large or "
        "a lie: no robust rule applies, each client's own check of its range remains",
        f"secure aggregation: a round is lost if a client is left with fewer than {stay}. The "
        "server is trusted to follow the protocol: a round that it repeats with others gives a "
        "difference away",
    ]
    if server.nodes_code:
        notes.append(
            "secure aggregation: a client whose node config names no known_keys could be given "
            "invented neighbours by this server"
        )
    return notes


@dataclass(eq=False)
class PrivateRun(Sight):
    """A run whose published results have a privacy budget; it keeps account of it."""

    mean: PrivateMean
    accountant: Accountant
    num_rounds: int
    write: Write
    spent: list[Spent]
    """Every round so far, those included that were done again after a crash."""
    round: int
    """The one that comes next."""
    masked: MaskedMean | None = None
    """Has the clients mask what they send, if the server may not see that either."""

    @property
    def aggregator(self) -> Aggregator:
        return self.masked or self.mean

    @property
    def transport(self) -> Transport:
        return self.masked or self.workers

    @property
    def now(self) -> Spent:
        """Return what one more round spends."""
        m = self.mean.mechanism
        return Spent(m.noise_multiplier, m.probability)

    def planned(self, tasks: Sequence[Task]) -> None:
        if self.masked:
            self.masked.reset()
        setup = self.server.setup
        self.mean.layout = setup.layouts(next(iter(setup.top_ks)), self.round).update

    @property
    def choose(self) -> Choose | None:
        m = self.mean.mechanism
        if m.privacy.sampling == "known":
            return None

        def chosen(members: Sequence[Member]) -> Sequence[Member]:
            draw = SystemRandom().random
            return [member for member in members if draw() < m.probability]

        return chosen

    def shown(self, update: Update) -> Update:
        return update if update.withheld else replace(update, withheld=True, num_bytes=0)

    def why_stop(self) -> str:
        p = self.mean.mechanism.privacy
        next_one = self.accountant.epsilon([*self.spent, self.now])
        if next_one <= p.epsilon * (1 + 1e-6):
            return ""
        return (
            f"one more round would spend epsilon {next_one:.3f} of privacy.epsilon {p.epsilon:g} "
            f"at delta {p.delta:g}, after {len(self.spent)} rounds"
        )

    def charge(self) -> None:
        """Write down what a round spends before it is known: a crash then costs too much at most.

        What it tells is in a second line, which is charged to nobody.
        """
        self.spent.append(self.now)
        self.write(self._line())

    def finished(self, state: ServerState) -> None:
        self.round = state.round + 1
        if self.masked is None:
            self.spent.append(self.now)
            self.write(self.mean.report | self._line())
        elif self.masked.report:
            self.write(self.mean.report | self._line() | {"charged": False})

    def _line(self) -> dict[str, Any]:
        epsilon, delta = self.accountant.epsilon(self.spent), self.accountant.delta
        line = {"epsilon": epsilon, "delta": delta, "next_clip": self.mean.clip}
        return line | self.now._asdict()

    @property
    def notes(self) -> list[str]:
        m = self.mean.mechanism
        p, a = m.privacy, self.accountant
        drawn = "as many as the seed draws, counted as all"
        if p.sampling == "secret":
            drawn = f"each client with probability {m.probability:.3g}, in secret"
        sees = "the server is trusted with single updates, and with who takes part"
        if self.masked:
            known = a.epsilon([self.now._replace(probability=1.0)] * self.num_rounds)
            sees = "the server sees sums alone, whose noise the clients add; as it knows who takes "
            sees += f"part, epsilon is {known:.2f} against it, and against clients of its making"
        planned = a.epsilon([self.now] * self.num_rounds)
        return [
            *(masked_notes(self.server) if self.masked else ()),
            f"privacy: {self.num_rounds} rounds spend epsilon {planned:.2f} of {p.epsilon:g} at "
            f"delta {p.delta:g}: noise {m.noise_multiplier:.3g} times a client's norm, {drawn}; "
            f"{sees}",
            "privacy: runs that use the same clients add up, also those that were thrown away",
            f"privacy: not hidden are {HIDDEN_NOT}",
        ]


def sight_of(
    server: ServerSide,
    workers: Workers,
    records: Iterable[Mapping[str, Any]],
    rounds: int,
    write: Write,
) -> Sight:
    """Return what a run's server may see.

    Args:
        records: the ledger as it was found: the spent rounds of it count, also those after the
            last checkpoint, which are done again.
        rounds: how many are finished in the state that the run continues from.

    Raises:
        ConfigError: the budget does not suffice for the rounds, or `delta` is no guarantee.
    """
    e = server.setup.experiment
    masked = None
    if e.secure_aggregation:
        masked = MaskedMean(server, workers, getattr(workers, "steps", None) or Here(e))
    if e.privacy is None:
        return MaskedRun(server, workers, masked, write) if masked else Sight(server, workers)
    return _private(server, workers, records, rounds, write, masked)


def _private(
    server: ServerSide,
    workers: Workers,
    records: Iterable[Mapping[str, Any]],
    rounds: int,
    write: Write,
    masked: MaskedMean | None,
) -> PrivateRun:
    e = server.setup.experiment
    p = e.privacy
    assert p is not None
    members = server.known
    number = len(members)
    if p.delta >= 1 / max(number, 2):
        said = f"{p.delta:g} lets one of {number} clients be given away whole; use less than "
        raise ConfigError("experiment", [Fault("privacy.delta", f"{said}{1 / max(number, 2):g}")])
    mechanism = mechanism_of(server.setup, Counter(member.top_k for member in members))
    lines = [line for line in records if line["kind"] == KIND]
    clips = [line["next_clip"] for line in lines if line["round"] <= rounds]
    mean = PrivateMean(mean_of(e), mechanism, clips[-1] if clips else p.clip)
    charged = [line for line in lines if line.get("charged", True)]
    spent = [Spent(line["noise_multiplier"], line["probability"]) for line in charged]
    args = Accountant(p.delta), e.rounds, write, spent, rounds + 1, masked
    run = PrivateRun(server, workers, mean, *args)
    if masked:
        masked.private, masked.charge = mean, run.charge
    if not spent:  # else it ends in time, with what it has; see `why_stop`
        _check(run, e.rounds)
    return run


def _check(run: PrivateRun, rounds: int) -> None:
    """Refuse a number of rounds that would spend more than there is."""
    m, p = run.mean.mechanism, run.mean.mechanism.privacy
    planned = run.accountant.epsilon([run.now] * rounds)
    if planned > p.epsilon * (1 + 1e-6):
        raise ConfigError(
            "experiment",
            [
                Fault(
                    "privacy.epsilon",
                    f"{p.epsilon:g} is less than the {planned:.3g} that {rounds} rounds spend at "
                    f"noise {m.noise_multiplier:.3g}; lower "
                    "`rounds` or clients_per_round, or raise privacy.noise_multiplier",
                )
            ],
        )
