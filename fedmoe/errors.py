"""The user's mistakes: a command prints them without a traceback and ends with exit code 2."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar

LONGEST_SHOWN = 60
LONGEST_QUOTE = 500
"""Characters of a text from outside that a ledger, a log or a page takes."""


class FedMoEError(Exception):
    """A mistake that the user can fix; its text says what failed, why, and what to do.

    Example:
        >>> import fedmoe
        >>> try:
        ...     fedmoe.open_run("nowhere")
        ... except fedmoe.FedMoEError as error:
        ...     print(error)
        nowhere is not the folder of a run: it has no ledger.jsonl
    """

    exit_code: ClassVar[int] = 2


class FedMoEWarning(UserWarning):
    """A setting that is honoured and is likely not what the user means."""


@dataclass(frozen=True, order=True)
class Fault:
    """A fault at one place of a configuration; an empty path means the whole file."""

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
    """All faults of one configuration, printed one a line under its source."""

    def __init__(self, where: str, faults: Iterable[Fault]) -> None:
        self.where = where
        self.faults = list(faults)
        # Both arguments go to Exception, else the error cannot be pickled out of a worker.
        super().__init__(where, self.faults)

    def __str__(self) -> str:
        head = f"{self.where}: {len(self.faults)} fault(s)"
        return "\n".join([head, *(f"  {fault}" for fault in self.faults)])


class DataError(FedMoEError):
    """A dataset or partition that cannot be used as requested."""


class ModelError(FedMoEError):
    """A model that lacks what was requested of it, or a setting that it would ignore."""


class WireError(FedMoEError):
    """A message that its receiver cannot use.

    `code` categorises the error, so that rejected updates can be counted: `message` (not one of
    ours), `damaged` (in transit), `layout`, `size`, `task` (of another round, client, tier or k),
    `scalars`, `counts`, `examples`, `not_finite`, `too_large`, `replay` (an answer to another
    request).
    """

    def __init__(self, message: str, code: str = "message") -> None:
        self.code = code
        message = quoted(message)
        # Both arguments go to Exception, else the error cannot be pickled out of a worker.
        super().__init__(message, code)

    def __str__(self) -> str:
        return str(self.args[0])


class AggregationError(FedMoEError):
    """Updates that cannot be combined."""


class CheckpointError(FedMoEError):
    """A checkpoint that is missing, damaged, or of another run."""


def quoted(text: str) -> str:
    """Return a text from outside for ledgers, logs and pages: short, and without characters that
    move a cursor or hide.

    >>> quoted("a\\x1b[2Jb"), quoted("x" * 10**6)[473:]
    ('a?[2Jb', 'xxx... (1000000 characters)')
    """
    if len(text) > LONGEST_QUOTE:
        end = f"... ({len(text)} characters)"
        text = text[: LONGEST_QUOTE - len(end)] + end
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def show(value: Any) -> str:
    """Return the value as the user could have written it, cut short."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def not_one_of(value: Any, choices: Sequence[Any]) -> str:
    """Return that `value` is none of the choices, and the choice that was likely meant."""
    near = get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{show(value)} is not one of {', '.join(map(show, choices))}{hint}"


def no_common_model(strategy: str) -> str:
    """Return why a run of a strategy has no adapter to export, serve or score."""
    return (
        f"a run of {strategy!r} has no common model: its clients keep a part of it to themselves, "
        "in the folder `clients` of the run"
    )
