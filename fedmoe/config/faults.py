"""Injected faults: lost, slow, damaged and killed clients, a server that dies.

`--faults drop=.1,slow=3x,corrupt=.01,nan=.02,kill-client=.05,kill-server@3`. Who is struck depends
on `(seed, round, client)` alone: the same faults strike again in a run that is resumed, and beside
another strategy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from fedmoe.config.words import not_one_of
from fedmoe.errors import ConfigError, Fault
from fedmoe.seeds import numpy_rng

Name = Literal["drop", "slow", "corrupt", "nan", "kill-client", "kill-server"]
Strike = Literal["kill-client", "drop", "corrupt", "nan", "slow"]
"""Faults of one client in one round; the first two leave nothing for the others."""
RATE = "a probability from 0 to 1, such as .1"
ALLOWED = {
    "drop": RATE,
    "corrupt": RATE,
    "nan": RATE,
    "kill-client": RATE,
    "slow": "a factor of 1 or more for everyone (3x), or for a share of client rounds (3x@.2)",
    "kill-server": "kill-server@N, N the round after which the server dies",
}


@dataclass(frozen=True)
class Faults:
    """The rate of each kind of fault: probabilities per client and round."""

    drop: float = 0.0
    """The update is lost on its way."""
    corrupt: float = 0.0
    """Some bytes of the update's message are flipped."""
    nan: float = 0.0
    """One value of the update is NaN."""
    kill_client: float = 0.0
    """The client dies before it has trained."""
    slow: float = 1.0
    """Factor on a client's time: on its virtual seconds where clients have devices, else on those
    that pass before its update is taken."""
    slow_share: float = 1.0
    """Probability that it counts."""
    kill_server: int | None = None
    """Round after which the server dies."""

    def of(self, seed: int, round: int, client: int) -> tuple[Strike, ...]:
        """Return the faults that are injected into a client in a round.

        A rate that is changed changes nothing about the others: each kind has a draw of its own.
        """
        rates: dict[Strike, float] = {
            "kill-client": self.kill_client,
            "drop": self.drop,
            "corrupt": self.corrupt,
            "nan": self.nan,
            "slow": self.slow_share if self.slow > 1 else 0.0,
        }
        draws = numpy_rng(seed, "faults", round, client).random(len(rates))
        drawn = zip(rates.items(), draws, strict=True)
        struck: list[Strike] = [name for (name, rate), u in drawn if u < rate]
        alone = struck and struck[0] in ("kill-client", "drop")
        return tuple(struck[:1] if alone else struck)

    def slowdown(self, seed: int, round: int, client: int) -> float:
        """The factor on the virtual seconds of a client's round."""
        return self.slow if "slow" in self.of(seed, round, client) else 1.0


NO_FAULTS = Faults()


def parse_faults(text: str) -> Faults:
    """The faults named in `text`, as they are written after `--faults`.

    Raises:
        ConfigError: with all that is wrong, and what is allowed.
    """
    found: dict[str, float | int] = {}
    wrong: list[Fault] = []
    for item in filter(None, map(str.strip, text.split(","))):
        name, sign, value = re.fullmatch(r"([^=@]*)([=@]?)(.*)", item, re.DOTALL).groups()  # type: ignore[union-attr]
        if name not in get_args(Name):
            wrong.append(Fault(item, not_one_of(name, [*get_args(Name)])))
        elif name.replace("-", "_") in found:
            wrong.append(Fault(item, f"{name} is there twice"))
        elif (read_value := _value(name, sign, value)) is None:
            wrong.append(Fault(item, f"expected {ALLOWED[name]}"))
        else:
            found |= read_value
    if wrong:
        raise ConfigError("--faults", wrong)
    return Faults(**found)  # type: ignore[arg-type]


def _value(name: str, sign: str, value: str) -> dict[str, float | int] | None:
    """Fields of `Faults`; None for what is not allowed."""
    if name == "kill-server":
        whole = re.fullmatch(r"[1-9]\d{0,8}", value, re.ASCII)
        return {"kill_server": int(value)} if sign == "@" and whole else None
    if sign != "=":
        return None
    if name == "slow":
        factor, at, share = value.partition("@")
        times, part = _number(factor.removesuffix("x")), _number(share) if at else 1.0
        if times is None or part is None or times < 1 or part > 1 or not factor.endswith("x"):
            return None
        return {"slow": times, "slow_share": part}
    rate = _number(value)
    return None if rate is None or rate > 1 else {name.replace("-", "_"): rate}


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,9}\.?\d*|\.\d+", text, re.ASCII) else None
