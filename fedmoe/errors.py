"""The user's mistakes: printed without a traceback, they end the program with exit code 2."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar

LONGEST_SHOWN = 60


class FedMoEError(Exception):
    """A mistake the user can fix; its text says where, what we got, what we expected."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, order=True)
class Fault:
    """One thing wrong at one place; an empty path means the whole file."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class Unfit(ValueError):
    """Faults that a section finds in its own settings while it is being made.

    pydantic passes a `ValueError` on; `config.explain` then lists the faults one by one.
    """

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(map(str, self.faults)))


class ConfigError(FedMoEError):
    """Every fault found in one configuration, printed one a line under its source."""

    def __init__(self, where: str, faults: Iterable[Fault]) -> None:
        self.where = where
        self.faults = list(faults)
        # Both arguments go to Exception, else the error cannot be pickled out of a worker.
        super().__init__(where, self.faults)

    def __str__(self) -> str:
        head = f"{self.where}: {len(self.faults)} fault(s)"
        return "\n".join([head, *(f"  {fault}" for fault in self.faults)])


class DataError(FedMoEError):
    """A dataset or partition that cannot be used as asked."""


class ModelError(FedMoEError):
    """A model that lacks what was asked of it, or a setting it would ignore."""


class WireError(FedMoEError):
    """A message that does not say what its receiver expects.

    `code` is one word for what was wrong with it, by which refused updates are counted: `message`
    (no message of ours), `damaged` (on its way), `layout`, `size`, `task` (of another round,
    client, tier or k), `scalars`, `counts`, `examples`, `not_finite`, `too_large`, `replay`
    (an answer to another request).
    """

    def __init__(self, message: str, code: str = "message") -> None:
        self.code = code
        # Both arguments go to Exception, else the error cannot be pickled out of a worker.
        super().__init__(message, code)

    def __str__(self) -> str:
        return str(self.args[0])


class AggregationError(FedMoEError):
    """Updates that cannot be combined."""


class CheckpointError(FedMoEError):
    """A checkpoint that is missing, damaged, or of another run."""


def show(value: Any) -> str:
    """Return the value as the user could have written it, cut short."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def not_one_of(value: Any, choices: Sequence[Any]) -> str:
    """Return that `value` is none of the choices, and the choice that was likely meant."""
    near = get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{show(value)} is not one of {', '.join(map(show, choices))}{hint}"
