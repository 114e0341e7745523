"""A run under a privacy budget: who takes part, what each round costs, and when it must end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from secrets import SystemRandom
from typing import TYPE_CHECKING, Any

from fedmoe.errors import ConfigError, Fault
from fedmoe.privacy.accountant import Accountant, calibrated
from fedmoe.privacy.private_mean import Mechanism, PrivateMean, even_weights
from fedmoe.rounds import Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fedmoe.messages.records import Update
    from fedmoe.rounds import Choose, Member, ServerState
    from fedmoe.runs.server_side import ServerSide

KIND = "private"
"""The kind of the ledger's lines that say what rounds have spent."""
IN_CLEAR = (
    "who took part in a round, with its tier, the size of its messages and whether it failed "
    "(ledger.jsonl, never published)",
    "scores on clients' own test rows, where clients report them",
    "the server's own test and validation scores, which are made of the private adapter alone",
)
"""What a private run still tells, and to whom."""


@dataclass(eq=False)
class PrivateRun(Observer):
    """Plays the strategy's part in a private run, and keeps account; an observer of its rounds."""

    mean: PrivateMean
    accountant: Accountant
    num_rounds: int
    write: Callable[[Mapping[str, Any]], None]
    """Appends a line to the run's ledger."""
    probabilities: list[float]
    """Of every round so far, those included that were done again after a crash."""

    @property
    def choose(self) -> Choose | None:
        """Return who takes part: of `known` sampling, whom the run's seed draws."""
        m = self.mean.mechanism
        if m.privacy.sampling == "known":
            return None

        def chosen(members: Sequence[Member]) -> Sequence[Member]:
            draw = SystemRandom().random
            return [member for member in members if draw() < m.probability]

        return chosen

    def shown(self, update: Update) -> Update:
        """Return an update as observers see it: without what it reports and without its counts."""
        return replace(update, withheld=True)

    def why_stop(self) -> str:
        """Return why no further round may begin; empty if it may."""
        p, m = self.mean.mechanism.privacy, self.mean.mechanism
        next_one = self.accountant.epsilon([*self.probabilities, m.probability])
        if next_one <= p.epsilon * (1 + 1e-6):
            return ""
        return (
            f"one more round would spend epsilon {next_one:.3f} of privacy.epsilon {p.epsilon:g} "
            f"at delta {p.delta:g}, after {len(self.probabilities)} rounds"
        )

    def finished(self, state: ServerState) -> None:
        self.probabilities.append(self.mean.mechanism.probability)
        spent = self.accountant.epsilon(self.probabilities)
        line = {"kind": KIND, "round": state.round, "epsilon": spent}
        line |= {"delta": self.accountant.delta, "next_clip": self.mean.clip}
        self.write(line | {"noise_multiplier": self.accountant.noise_multiplier} | self.mean.report)

    @property
    def notes(self) -> list[str]:
        """Return what the budget is, and what leaves clients in clear, in sentences."""
        m = self.mean.mechanism
        p, a = m.privacy, self.accountant
        drawn = "as many as the seed draws, counted as all"
        if p.sampling == "secret":
            drawn = f"each client with probability {m.probability:.3g}, in secret"
        planned = a.epsilon([m.probability] * self.num_rounds)
        return [
            f"privacy: {self.num_rounds} rounds spend epsilon {planned:.2f} of {p.epsilon:g} at "
            f"delta {p.delta:g}: noise {a.noise_multiplier:.3g} times a client's norm, {drawn}; "
            "the server is trusted with single updates",
            f"privacy: not hidden are {'; '.join(IN_CLEAR)}",
        ]


def private_run(
    server: ServerSide,
    records: Iterable[Mapping[str, Any]],
    rounds: int,
    write: Callable[[Mapping[str, Any]], None],
) -> PrivateRun | None:
    """Return what a run's `privacy` asks for; None without it.

    Args:
        server: the run.
        records: the ledger as it was found: the spent rounds of it count, also those after the
            last checkpoint, which are done again.
        rounds: how many are finished in the state that the run continues from.
        write: appends a line to the ledger.

    Raises:
        ConfigError: the budget does not suffice for the rounds, or `delta` is no guarantee.
    """
    e = server.setup.experiment
    if (p := e.privacy) is None:
        return None
    number = len(server.members)
    if p.delta >= 1 / max(number, 2):
        said = f"{p.delta:g} lets one of {number} clients be given away whole; use less than "
        raise ConfigError("experiment", [Fault("privacy.delta", f"{said}{1 / max(number, 2):g}")])
    part = min(1.0, server.clients_per_round / max(1, number))
    probability = part if p.sampling == "secret" else 1.0
    noise = p.noise_multiplier or calibrated(p.epsilon, p.delta, probability, e.rounds)
    top_ks = [m.top_k for m in server.members] or [*server.setup.top_ks.values()]
    even = even_weights(e.aggregation, p, top_ks, server.setup.model.layout)
    mechanism = Mechanism(p, noise, probability, part * number, even)
    spent = [line for line in records if line["kind"] == KIND]
    for line in spent:
        if line["round"] > rounds:
            write(dict(line))
    clips = [line["next_clip"] for line in spent if line["round"] <= rounds]
    mean = PrivateMean(e.aggregation, mechanism, clips[-1] if clips else p.clip)
    past = [line["probability"] for line in spent]
    run = PrivateRun(mean, Accountant(noise, p.delta), e.rounds, write, past)
    _check(run, e.rounds - rounds)
    return run


def _check(run: PrivateRun, rounds: int) -> None:
    """Refuse a number of rounds that would spend more than there is."""
    m, p = run.mean.mechanism, run.mean.mechanism.privacy
    planned = run.accountant.epsilon([*run.probabilities, *[m.probability] * rounds])
    if planned > p.epsilon * (1 + 1e-6):
        raise ConfigError(
            "experiment",
            [
                Fault(
                    "privacy.epsilon",
                    f"{p.epsilon:g} is less than the {planned:.3g} that {rounds} more rounds spend "
                    f"at noise {m.privacy.noise_multiplier or m.noise_multiplier:.3g}; lower "
                    "`rounds` or clients_per_round, or raise privacy.noise_multiplier",
                )
            ],
        )
