"""A run now, as one value: what a terminal, a page, a JSON reader and Prometheus are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from fedmoe.report.headline import headline
from fedmoe.report.run import Run
from fedmoe.report.units import seconds_text
from fedmoe.watch.live.pace import Phase, activity, phase, seconds_left
from fedmoe.watch.live.parts import (
    ClientNow,
    Experts,
    Quarantine,
    TierNow,
    client_now,
    experts_now,
    quarantine,
    tiers_now,
)

Sample = Callable[[Run, int], Sequence[int]]
"""The clients that take part in a round of a run that goes by rounds."""


@dataclass(frozen=True)
class RunNow:
    """A run as it stands."""

    run: str
    """Its folder, from the one that is watched."""
    name: str
    phase: Phase
    activity: str
    """What it does now, in words."""
    model: str
    strategy: str
    rescaling: str
    seed: int
    num_rounds: int
    num_finished: int
    """Rounds finished."""
    round: int
    """The round that `clients` are of: the present one, or the last."""
    seconds_left: float | None
    seconds: float | None
    """Wall time of a run that has ended; of the rounds of one that has not."""
    last_line: float
    """When the ledger was last written, in seconds since 1970."""
    quiet_seconds: float
    """How long ago that is."""
    clients: tuple[ClientNow, ...]
    unnamed: int
    """Clients of the round that are awaited, and of which nobody can know who they are."""
    tiers: tuple[TierNow, ...]
    score_name: str
    quarantine: tuple[Quarantine, ...]
    experts: Experts | None
    num_replaced: int
    """Workers that died and were replaced."""
    virtual_clock: float | None
    """Virtual seconds since the start, where clients have devices."""
    headline: str
    advice: str | None
    """How to go on with a run that is silent."""

    def as_json(self) -> dict[str, Any]:
        """All of it, for `json_text`."""
        return {"kind": "run", **asdict(self)}

    @property
    def timeless(self) -> Self:
        """All but what goes on by itself: equal for two looks between which nothing happened.

        By the ledger's time alone nobody can say: two lines within one tick of the file's clock
        have the same.
        """
        return replace(self, quiet_seconds=0.0, seconds_left=None)

    @property
    def pace(self) -> str:
        """Where the run is, in one line."""
        if self.phase == "finished":
            return f"finished after {seconds_text(self.seconds)}"
        quiet = f"last line {seconds_text(self.quiet_seconds)} ago"
        if self.phase == "silent":
            return f"no end and no news: {quiet}, then {self.activity}"
        known = self.seconds_left is not None
        left = f", about {seconds_text(self.seconds_left)} left" if known else ""
        return f"{self.activity}{left}, {quiet}"


@dataclass(frozen=True)
class Unreadable:
    """A folder with a ledger that says nothing yet, or that is damaged."""

    run: str
    error: str

    def as_json(self) -> dict[str, Any]:
        """All of it, for `json_text`."""
        return {"kind": "unreadable", **asdict(self)}


def state_of(
    run: Run, name: str, last_line: float, now: float, sample: Sample | None = None
) -> RunNow:
    """What a run is at.

    Args:
        run: as it is in its folder.
        name: what the run is called beside others.
        last_line: when its ledger was last written, in seconds since 1970.
        now: the time, likewise.
        sample: who takes part in a round; without it only rounds of all clients are known.
    """
    quiet = max(0.0, now - last_line)
    at, done, planned = phase(run, quiet), run.num_finished, run.header["num_rounds"]
    number = done if at == "finished" or done == planned else done + 1
    clients, unnamed = clients_now(run, number, sample)
    heard = sum(c.state != "awaited" for c in clients) if number > done else 0
    left = seconds_left(run, heard, len(clients) + unnamed, quiet) if at == "running" else None
    spent = run.end["seconds"] if run.end else sum(r["seconds"] for r in run.rounds) or None
    return RunNow(
        run=name,
        name=run.header["name"],
        phase=at,
        activity="finished" if at == "finished" else activity(run),
        **{key: run.header[key] for key in ("model", "strategy", "rescaling", "seed")},
        num_rounds=planned,
        num_finished=done,
        round=number,
        seconds_left=left,
        seconds=spent,
        last_line=last_line,
        quiet_seconds=quiet,
        clients=clients,
        unnamed=unnamed,
        tiers=tiers_now(run),
        score_name=run.score_name,
        quarantine=quarantine(run),
        experts=experts_now(run),
        num_replaced=run.num_replaced,
        virtual_clock=max(run.virtual_clock.values(), default=None),
        headline=headline(run),
        advice=_advice(run) if at == "silent" else None,
    )


def clients_now(run: Run, number: int, sample: Sample | None) -> tuple[tuple[ClientNow, ...], int]:
    """A round's clients by id, and how many more are awaited without a name."""
    lines = {c["client"]: c for c in run.clients if c["round"] == number}
    if number <= run.num_finished:
        return tuple(client_now(lines[c]) for c in sorted(lines)), 0
    members = _members(run, number, sample)
    if members is None:
        known = tuple(client_now(lines[c]) for c in sorted(lines))
        return known, max(0, _size_of_step(run) - len(lines))
    return tuple(
        client_now(lines[c]) if c in lines else _awaited(run, c) for c in sorted({*members, *lines})
    ), 0


def _members(run: Run, number: int, sample: Sample | None) -> Sequence[int] | None:
    """Who takes part in a round, by client id; None where that cannot be known beforehand."""
    if "updates_per_step" in run.header:  # whoever arrives next in virtual time
        return None
    if sample:
        return sample(run, number)
    whole = run.header["clients_per_round"] == run.header["num_clients"]
    reachable = all(tier.device is None or tier.device.availability == 1 for tier in run.tiers)
    return [c for tier in run.tiers for c in tier.clients] if whole and reachable else None


def _size_of_step(run: Run) -> int:
    """Answers that a round, or a step of an asynchronous server, is made of."""
    return run.header.get("updates_per_step", run.header["clients_per_round"])


def _awaited(run: Run, client: int) -> ClientNow:
    tier = run.tier_of(client)
    return ClientNow(client, tier.name, tier.top_k, "awaited")


def _advice(run: Run) -> str:
    done = run.num_finished
    begun = f"Round {done} is the last one finished" if done else "No round was finished"
    return (
        f"{begun}. If its process is gone, start the same command again with --resume auto; a "
        "comparison started again repeats only what has no end."
    )
