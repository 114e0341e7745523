"""Who takes part in a run whose clients come and go between rounds.

A client keeps its number for the whole run, so that its coming or going changes nobody else's rows,
tier or randomness. Numbers are given in the order of joining; of clients that join at once, in that
of the configuration or of their names. The ledger has one line a round, from which a resumed run
replays who was there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from fedmoe.data.federated import unknown_names
from fedmoe.errors import FedMoEError, FedMoEWarning
from fedmoe.rounds import Member
from fedmoe.runs.members import named_member

if TYPE_CHECKING:
    from fedmoe.config.schema import Experiment
    from fedmoe.data.federated import Federated
    from fedmoe.runs.setup import Setup

Present = Callable[[Collection[str], int, float], Collection[str]]
"""Returns the clients that are there: given those to wait for, the least number, and seconds."""


@dataclass(frozen=True)
class Attendance:
    """Who was there in a round."""

    round: int
    there: int
    """The number of members that were there."""
    absent: tuple[Member, ...] = ()
    """Members that were not there, and have not left."""
    joined: tuple[Member, ...] = ()
    left: tuple[Member, ...] = ()
    """Members that were absent for so long that they count no more."""

    def as_json(self) -> dict[str, Any]:
        """Return it as a line of the ledger."""
        joined = [{"client": m.client, "name": m.name, "tier": m.tier} for m in self.joined]
        absent, left = ([m.client for m in found] for found in (self.absent, self.left))
        lists = {"absent": absent, "joined": joined, "left": left}
        return {"kind": "roster", "round": self.round, **lists}


class Roster(Sequence[Member]):
    """The members that have not left, by number."""

    def __init__(self, setup: Setup, records: Iterable[Mapping[str, Any]] = ()) -> None:
        """Begin without members, or with those of the rounds that a ledger tells of.

        Args:
            records: the lines of its ledger, if it is resumed; those of a round that has begun and
                not ended say who takes part in it when it is repeated.
        """
        self.setup = setup
        self.all: list[Member] = []
        """By number, also those that have left."""
        self.gone: set[int] = set()
        self.missed: dict[int, int] = {}
        """By number: the rounds in a row that a member has been absent."""
        self.round = 0
        """The round that the members were last looked at for."""
        records = list(records)
        self.recorded = {r["round"]: r for r in records if r["kind"] == "roster"}
        self.said: dict[int, int] = {}
        """By number: the examples that a member claimed in the first update since it joined."""
        self.claims = [r for r in records if r["kind"] == "client" and "examples" in r]

    def __len__(self) -> int:
        return len(self.all) - len(self.gone)

    def __getitem__(self, place: Any) -> Any:
        return [*self][place]

    def __iter__(self) -> Iterator[Member]:
        return (member for member in self.all if member.client not in self.gone)

    def here(self) -> list[Member]:
        """Return all members by number; those that are not there cannot be reached."""
        away = self.gone | {*self.missed}
        return [replace(m, availability=0.0) if m.client in away else m for m in self.all]

    @property
    def everyone(self) -> Sequence[Member]:
        """Return a view of all members by number, as they are now; see `here`."""
        return Everyone(self)

    def present(self) -> list[Member]:
        """Return those that are there, by number."""
        return [m for m in self if m.client not in self.missed]

    def skip(self, rounds: int) -> None:
        """Go to where the roster was after so many finished rounds, as recorded."""
        for round in range(1, rounds + 1):
            if round in self.recorded:
                self._note(self._replayed(round))
            for line in self.claims:
                if line["round"] == round:
                    self.heard(line["client"], line["examples"])
        self.round = rounds

    def heard(self, client: int, examples: int) -> None:
        """Note what a member claims to hold, if it is the first time since it joined."""
        self.said.setdefault(client, examples)

    def most_examples(self, client: int) -> tuple[int, str]:
        """Return the examples that a member may claim after its first claim, and why no more."""
        said, growth = self.said[client], self.setup.experiment.admission.most_growth
        why = (
            f"after {said} in its first update; the server's owner lets clients gain rows by "
            f"admission.most_growth, {growth:g} here, and one that left and joins again starts anew"
        )
        return math.floor(said * growth), f"({why})"

    def meet(self, round: int, present: Present) -> Attendance | None:
        """Look who is there for a round, and note it; None if that was done before.

        Raises:
            FedMoEError: fewer clients than `membership.least`, after `membership.wait_seconds`.
            ConfigError: no tier takes a client that joins.
        """
        if round <= self.round:
            return None
        e = self.setup.experiment
        if round in self.recorded:
            attendance = self._replayed(round)
            absent = {m.client for m in attendance.absent}
            expected = [m.name for m in [*self, *attendance.joined] if m.client not in absent]
            present(expected, 0, e.membership.wait_seconds)
        else:
            attendance = self._met(round, present)
        self._note(attendance)
        self.round = round
        return attendance

    def _met(self, round: int, present: Present) -> Attendance:
        e = self.setup.experiment
        rules, listed = e.membership, cast("Federated", e.data).clients
        wanted = [n for n in listed if rules.takes_part(n, round)] if not self.all else []
        found = {*present(wanted, rules.least, rules.wait_seconds)}
        there = [name for name in listed or sorted(found) if name in found]
        there = [name for name in there if rules.takes_part(name, round)]
        if len(there) < rules.least:
            raise FedMoEError(
                f"round {round}: {len(there)} client(s) are there, and membership.least is "
                f"{rules.least}; wait for more (membership.wait_seconds), or lower it. There: "
                f"{', '.join(there)[:200] or 'nobody'}"
            )
        if not self.all:
            self._warn(found, listed)
        known = {member.name: member for member in self.all}
        back = [known[name] for name in there if name in known]
        new = [name for name in there if name not in known]
        joined = [named_member(self.setup, len(self.all) + n, name) for n, name in enumerate(new)]
        returned = [member for member in back if member.client in self.gone]
        here = {member.client for member in back}
        absent = [member for member in self if member.client not in here]
        most = math.inf if rules.most_absent is None else rules.most_absent
        left = tuple(m for m in absent if self.missed.get(m.client, 0) >= most)
        stay = tuple(m for m in absent if self.missed.get(m.client, 0) < most)
        return Attendance(round, len(there), stay, (*returned, *joined), left)

    def _warn(self, found: Collection[str], listed: Sequence[str]) -> None:
        """Warn of clients that are there and not listed, and of settings for those that are not."""
        e = self.setup.experiment
        said = [f"{fault}; it may come later" for fault in unknown_names(e, {*found, *listed})]
        if unlisted := sorted({*found} - {*listed}) if listed else []:
            names = ", ".join(unlisted)[:200]
            said.append(f"not in data.clients, and so taking no part: {names}")
        for sentence in said:
            warnings.warn(sentence, FedMoEWarning, stacklevel=2)

    def _note(self, attendance: Attendance) -> None:
        for member in attendance.joined:
            if member.client == len(self.all):
                self.all.append(member)
            self.said.pop(member.client, None)
        self.gone -= {member.client for member in attendance.joined}
        self.gone |= {member.client for member in attendance.left}
        self.missed = {m.client: self.missed.get(m.client, 0) + 1 for m in attendance.absent}

    def _replayed(self, round: int) -> Attendance:
        """Return a round's attendance from the ledger's line."""
        line = self.recorded[round]
        joined = [named_member(self.setup, j["client"], j["name"]) for j in line["joined"]]
        absent, left = (tuple(self.all[c] for c in line[key]) for key in ("absent", "left"))
        gone = {m.client for m in (*absent, *left)}
        there = {m.client for m in (*self, *joined)} - gone
        return Attendance(round, len(there), absent, tuple(joined), left)


class Everyone(Sequence[Member]):
    """All members of a roster by number, also those that joined after this view was made."""

    def __init__(self, roster: Roster) -> None:
        self.roster = roster

    def __len__(self) -> int:
        return len(self.roster.all)

    def __getitem__(self, place: Any) -> Any:
        return self.roster.here()[place]

    def __iter__(self) -> Iterator[Member]:
        return iter(self.roster.here())


def roster_of(setup: Setup, records: Iterable[Mapping[str, Any]], rounds: int) -> Roster | None:
    """Return the roster of a run whose clients are known by name; None for other runs."""
    if not is_federated(setup.experiment):
        return None
    roster = Roster(setup, records)
    roster.skip(rounds)
    return roster


def is_federated(experiment: Experiment) -> bool:
    """Return whether clients hold rows of their own, which they alone read and score."""
    return experiment.data.name == "federated"
