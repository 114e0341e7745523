"""The account of all clients whose rows are on this machine, before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.errors import DataError
from fedmoe.messages.rows import RowCounts, warnings_of
from fedmoe.report.units import listed

if TYPE_CHECKING:
    from fedmoe.runs.own_data import OwnData


@dataclass(frozen=True)
class OwnAccount:
    """What became of every row that was read, and of every client and file that was found."""

    rows: dict[str, RowCounts]
    """By client, of those that can take part."""
    faults: dict[str, str]
    """By client: why its rows cannot be used, in a sentence that names it."""
    scored: Mapping[str, int]
    """By split: the rows that clients score, which may be fewer than they hold out."""
    answers: Mapping[str, int]
    """By split: the answers that clients hold out, which in conversations are more than rows."""
    forms: tuple[str, ...] = ()
    """The formats of their rows, in words."""
    unlisted: tuple[str, ...] = ()
    """Clients that are there, and that `data.clients` leaves out."""
    ignored: tuple[str, ...] = ()
    """Files of the folder that hold no client's rows."""
    unreachable: str = ""
    """The first client with answers that cannot score 1, and why; empty if no client has any."""

    @property
    def total(self) -> RowCounts:
        """Return the sum over all clients."""
        return RowCounts.total(self.rows.values())

    def check_enough(self, quorum: float) -> None:
        """Refuse clients of whom too few can take part for a run to go on.

        Raises:
            DataError: none can, or fewer than `quorum`; lists every reason.
        """
        here = len(self.rows) + len(self.faults)
        if self.rows and len(self.rows) >= quorum * here - 1e-9:
            return
        why = [f"  {reason}" for reason in self.faults.values()]
        needed = f", and quorum {quorum:g} needs more" if self.rows else ""
        said = f"{len(self.rows)} of {here} clients have rows that can be used{needed}"
        raise DataError("\n".join([f"data.name 'federated': {said}", *why]))

    def warnings(self) -> list[str]:
        """Return a sentence for each client that is no use or loses much, and for losses in all."""
        said = [f"cannot take part: {why}" for why in self.faults.values()]
        said += warnings_of(self.rows)
        if len(self.rows) > 1 and (all_of := self.total.warning("all clients")):
            said.append(all_of)
        return [*said, self.unreachable] if self.unreachable else said

    def notes(self) -> list[str]:
        """Return a line for each kind of thing that is there and is not used."""
        kinds = [
            (
                f"client(s) have no {split} row",
                [name for name, counts in self.rows.items() if not getattr(counts, split)],
            )
            for split in ("validation", "test")
        ]
        kinds += [
            ("client(s) there are not in data.clients, and take no part", self.unlisted),
            ("file(s) there hold no client's rows, and are not read", self.ignored),
        ]
        return [f"{len(names)} {what}: {listed(names)}" for what, names in kinds if names]


def read_account(own: OwnData) -> OwnAccount:
    """Read the rows of every client in turn, and return their account."""
    rows: dict[str, RowCounts] = {}
    faults: dict[str, str] = {}
    scored: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    forms: dict[str, None] = {}
    unreachable = ""
    for name in own:
        try:
            data = own.of(name)
        except DataError as error:
            faults[name] = str(error)
            continue
        rows[name] = data.counts
        forms[data.form] = None
        scored.update({split: len(found.rows) for split, found in data.sets.items()})
        answers.update({split: found.held_out for split, found in data.sets.items()})
        if data.counts.unreachable and not unreachable:
            notes = [note for found in data.sets.values() for note in found.notes]
            unreachable = f"client {name}: {notes[0].removeprefix('warning: ')}"
    local, known = own.local, (rows, faults, scored, answers, tuple(forms))
    return OwnAccount(*known, local.unlisted, local.ignored, unreachable)
