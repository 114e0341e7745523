"""The account of a client's rows: read, used, held out, and dropped with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from fedmoe.errors import WireError

MOST_ROWS = 2**40
WITHHELD = "withheld-"
"""How the name of a client begins that withholds its own."""
LOST_WARNING = 0.05
"""Share of dropped rows above which a warning is due."""
MOST_WARNINGS = 10
"""Clients that are warned of one by one."""


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """Every row that was read, by what became of it: `read` is the sum of all others but
    `truncated` and `unreachable`.

    Example:
        >>> counts = RowCounts(read=10, train=6, validation=1, test=1, repeated=1, too_long=1)
        >>> counts.dropped, counts.lost_share
        ({'repeated': 1, 'too_long': 1}, 0.2)
        >>> str(counts)
        '10 read: 6 to train on, 1 held out for validation, 1 for testing, 2 dropped (1 repeated, \
1 too long)'
    """

    read: int = 0
    train: int = 0
    """Examples that are trained on."""
    validation: int = 0
    test: int = 0
    """Both are held out of training."""
    repeated: int = 0
    """The same conversation as an earlier row's: compared whole, letter by letter."""
    empty: int = 0
    """No prompt or no response."""
    refused: int = 0
    """Unusable for another reason, such as a number where text belongs."""
    too_long: int = 0
    """More tokens than `text.max_length`."""
    truncated: int = 0
    """Rows that are used without the oldest turns of their conversation; counted as used, too."""
    unreachable: int = 0
    """Answers held out whose own response cannot score 1, or is longer than an answer may be."""

    @classmethod
    def of(cls, **parts: int) -> Self:
        """Return counts whose `read` is the sum of the parts.

        Example:
            >>> RowCounts.of(train=6, empty=1).read
            7
        """
        return cls(read=sum(parts.values()), **parts)

    @property
    def dropped(self) -> dict[str, int]:
        """Return the reasons for which rows were dropped, with their numbers."""
        return {name: n for name in REASONS if (n := getattr(self, name))}

    @property
    def lost_share(self) -> float:
        """Return the share of the rows that were dropped, from 0 to 1."""
        return sum(self.dropped.values()) / self.read if self.read else 0.0

    def __add__(self, other: Self) -> Self:
        mine, theirs = asdict(self), asdict(other)
        return type(self)(**{name: mine[name] + theirs[name] for name in mine})

    def __str__(self) -> str:
        parts = [f"{self.train:,} to train on", f"{self.validation:,} held out for validation"]
        parts.append(f"{self.test:,} for testing")
        parts.append(
            f"{sum(self.dropped.values()):,} dropped ({self._why()})"
            if self.dropped
            else "none dropped"
        )
        if self.truncated:
            parts.append(f"{self.truncated:,} without their oldest turns (text.too_long)")
        return f"{self.read:,} read: {', '.join(parts)}"

    def _why(self) -> str:
        return ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in self.dropped.items())

    def loss(self) -> str:
        """Return how many rows were dropped and why; empty if none were.

        Example:
            >>> RowCounts.of(train=6, empty=1, too_long=2).loss()
            '3 of 9 rows were dropped (1 empty, 2 too long)'
        """
        lost = sum(self.dropped.values())
        return f"{lost:,} of {self.read:,} rows were dropped ({self._why()})" if lost else ""

    def reasons(self) -> list[str]:
        """Return a line per reason for which rows were dropped, with what it means.

        Example:
            >>> RowCounts.of(train=6, too_long=2).reasons()
            ['2 too long: more tokens than text.max_length']
        """
        return [
            f"{n:,} {name.replace('_', ' ')}: {REASONS[name]}" for name, n in self.dropped.items()
        ]

    def as_json(self) -> dict[str, int]:
        """Return all counts by name."""
        return asdict(self)

    def warning(self, whose: str = "the data") -> str:
        """Return a sentence if more than 5 % of the rows were dropped, or right answers cannot
        score 1; empty if not."""
        said = []
        if self.lost_share > LOST_WARNING:
            said.append(f"{self.lost_share:.0%} of the rows of {whose} are not used: {self}")
        if self.unreachable:
            said.append(
                f"{self.unreachable:,} held-out answers of {whose} cannot score 1: the metric does "
                "not give it for the response itself, or evaluation.max_new_tokens is too small"
            )
        return "; ".join(said)

    @classmethod
    def total(cls, counts: Iterable[Self]) -> Self:
        """Return the sum of the counts of several clients."""
        return sum(counts, start=cls())

    @classmethod
    def checked(cls, found: Any) -> Self:
        """Return the counts in what a client sent.

        Raises:
            WireError: a count is missing or no number from 0 on, or they do not add up.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(found, Mapping) or {*found} != {*names}:
            raise WireError(f"rows are {found!s:.200}; expected {', '.join(names)}", "scalars")
        for name, value in found.items():
            if type(value) is not int or not 0 <= value <= MOST_ROWS:
                raise WireError(f"rows.{name} is {value!r:.60}; expected 0 or more", "scalars")
        counts = cls(**found)
        parts = sum(found.values()) - counts.read - counts.truncated - counts.unreachable
        if parts != counts.read:
            raise WireError(f"rows.read is {counts.read}; its parts sum to {parts}", "scalars")
        return counts


REASONS = {
    "repeated": "the same prompt, response and label as an earlier row, letter by letter",
    "empty": "no prompt or no response",
    "refused": "not text where text belongs, messages in an order that cannot be, or a row that "
    "cannot be read or worded",
    "too_long": "more tokens than text.max_length",
}
"""Fields that count dropped rows, and what each means."""


def warnings_of(rows: Mapping[str, RowCounts], most: int = MOST_WARNINGS) -> list[str]:
    """Return a sentence for each client that `warning` has one for, the worst first.

    Of more than `most`, the others are counted in one sentence.

    Example:
        >>> warnings_of({"a": RowCounts.of(train=9, empty=1), "b": RowCounts.of(train=9)})
        ['10% of the rows of client a are not used: 10 read: 9 to train on, 0 held out for \
validation, 0 for testing, 1 dropped (1 empty)']
    """
    worst = sorted(rows.items(), key=lambda pair: -pair[1].lost_share)
    said = [text for name, counts in worst if (text := counts.warning(f"client {name}"))]
    if len(said) > most:
        others = f"{len(said) - most} more clients have such warnings"
        return [*said[:most], others]
    return said
