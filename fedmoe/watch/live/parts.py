"""What the state of a run is made of: tiers, clients of a round, failures, expert load."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedmoe.messages.records import CLIENT_FIELDS
from fedmoe.report.ledger import Record
from fedmoe.report.run import Run, TierCost

ClientState = Literal["ok", "failed", "awaited"]


@dataclass(frozen=True)
class Score:
    """One evaluation of the global adapter at a tier's budget."""

    split: str
    round: int
    score: float | None
    loss: float | None


@dataclass(frozen=True)
class TierNow:
    """A budget tier: what its clients have done so far, and how its scores went."""

    name: str
    top_k: int
    num_clients: int
    device: str | None
    """The label of its virtual device, where it has one."""
    answers: int
    failures: int
    tokens: int
    seconds: float
    """Sum of its clients' own training times."""
    bytes_down: int
    bytes_up: int
    scores: tuple[Score, ...]
    """By round; the last one is the newest."""


@dataclass(frozen=True)
class ClientNow:
    """A client of the present round."""

    client: int
    tier: str
    top_k: int
    state: ClientState
    reason: str | None = None
    reported: Mapping[str, float | None] = field(default_factory=dict)
    """Everything in `CLIENT_FIELDS`, by name."""
    virtual_seconds: float | None = None
    staleness: int | None = None
    """Server steps since the adapter that it started from, in asynchronous runs."""


@dataclass(frozen=True)
class Quarantine:
    """Answers that were kept out of the average for one reason."""

    reason: str
    """As the last of them gave it; the numbers in it differ from client to client."""
    code: str
    """One word for it, see `errors.WireError`; empty in a ledger that is older than codes."""
    count: int
    clients: tuple[int, ...]
    last_round: int


@dataclass(frozen=True)
class Experts:
    """Where the tokens of all rounds so far went."""

    num_experts: int
    """In all layers."""
    starved: int
    """Below a tenth of the equal share of their layer's tokens."""
    captured: int
    """Above twice the equal share."""
    load: tuple[tuple[float | None, ...], ...]
    """(layers, experts): share of the layer's tokens times experts; 1 is equal."""


def tiers_now(run: Run) -> tuple[TierNow, ...]:
    """Every tier of a run, by `top_k`."""
    return tuple(_tier_now(run, tier) for tier in run.tiers)


def _tier_now(run: Run, tier: TierCost) -> TierNow:
    done = run.ok(tier=tier.name)
    scores = sorted(
        (e for e in run.evaluations if e["tier"] == tier.name),
        # The test scores of the last round come after its validation scores.
        key=lambda e: (e["round"], e["split"] == "test"),
    )
    return TierNow(
        name=tier.name,
        top_k=tier.top_k,
        num_clients=len(tier.clients),
        device=tier.device.label if tier.device else None,
        answers=len(done),
        failures=sum(c["tier"] == tier.name and c["status"] == "failed" for c in run.clients),
        tokens=sum(c["tokens"] for c in done),
        seconds=sum(c["seconds"] for c in done),
        bytes_down=sum(c["bytes_down"] for c in done),
        bytes_up=sum(c["bytes_up"] for c in done),
        scores=tuple(Score(e["split"], e["round"], e["score"], e["loss"]) for e in scores),
    )


def client_now(line: Record) -> ClientNow:
    """A client that has answered, from its line in the ledger."""
    return ClientNow(
        line["client"],
        line["tier"],
        line["top_k"],
        state="ok" if line["status"] == "ok" else "failed",
        reported={f.name: line.get(f.name) for f in CLIENT_FIELDS},
        **{name: line.get(name) for name in ("reason", "virtual_seconds", "staleness")},
    )


def quarantine(run: Run) -> tuple[Quarantine, ...]:
    """All failures by their reason, the most frequent first.

    Two reasons are the same if they have one code and differ in numbers only.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for line in run.clients:
        if line["status"] == "failed":
            key = line.get("code", ""), _without_numbers(line["reason"])
            groups.setdefault(key, []).append(line)
    found = [
        Quarantine(
            reason=lines[-1]["reason"],
            code=code,
            count=len(lines),
            clients=tuple(sorted({line["client"] for line in lines})),
            last_round=lines[-1]["round"],
        )
        for (code, _), lines in groups.items()
    ]
    return tuple(sorted(found, key=lambda q: (-q.count, q.reason)))


def experts_now(run: Run) -> Experts | None:
    """Load, starved and captured experts; None before the first round's end.

    The limits are those of a comparison: 0.1 and 2 equal shares.
    """
    if run.by_client is None:
        return None
    from fedmoe.report.expert_load import CAPTURED, STARVED, relative_shares

    load = relative_shares(run.by_client.sum(0))
    return Experts(
        num_experts=load.size,
        starved=int((load < STARVED).sum()),  # a comparison with NaN is False
        captured=int((load > CAPTURED).sum()),
        load=tuple(_row(layer) for layer in load),
    )


def _row(layer: Sequence[float] | np.ndarray) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else round(float(value), 3) for value in layer)


def _without_numbers(reason: str) -> str:
    return re.sub(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?", "#", reason)
