"""The tables that `fedmoe status` and the live page share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from fedmoe.report.fields import live_cells, live_headings
from fedmoe.report.text_table import TextTable
from fedmoe.report.units import (
    DASH,
    bytes_text,
    count_text,
    listed,
    number_text,
    percent_text,
    seconds_text,
)
from fedmoe.watch.state import ClientState, FolderState, RunState, Score, Unreadable

MOST_CLIENTS = 200
"""Clients of a round that are listed; failed ones first, if there are more."""
SIGNS = {"ok": "\u2713 ok", "failed": "\u2717 failed", "awaited": "\u2026 not heard yet"}
"""Told apart without colour."""


def scores(now: RunState) -> TextTable:
    """Return, per tier, the newest validation and test scores, and the base model's."""
    found = {"base": [tier.base for tier in now.tiers]}
    found |= {name: [t.newest(name) for t in now.tiers] for name in ("validation", "test")}
    rounds = {split: max((s.round for s in found[split] if s), default=0) for split in found}
    rounds = {split: number for split, number in rounds.items() if number}
    shown = {name: each for name, each in found.items() if name == "base" or name in rounds}
    scored = shown if any(s and s.score is not None for e in shown.values() for s in e) else {}
    columns = ["tier", "k", *scored, *(f"{name} loss" for name in shown)]
    rows = [
        [
            tier.name,
            count_text(tier.top_k),
            *(_of(each[i], "score", percent_text) for each in scored.values()),
            *(_of(each[i], "loss", number_text) for each in shown.values()),
        ]
        for i, tier in enumerate(now.tiers)
    ]
    said = ", ".join(f"{split} after round {number}" for split, number in rounds.items())
    name = f"{now.score_name.capitalize()}, and loss" if scored else "Loss"
    note = f"{name} per token. Base: without an adapter, on test."
    note += f" Newest: {said}." if said else ""
    return TextTable("Scores per tier", columns, rows, note=note)


def clients(now: RunState, most: int = MOST_CLIENTS) -> TextTable:
    """Return the clients of the round with tier, state, and their measurements."""
    found = now.clients
    if cut := max(0, len(found) - most):
        found = sorted(found, key=lambda c: c.state != "failed")[:most]
    answered = sum(c.state != "awaited" for c in now.clients)
    note = f"{answered} of {len(now.clients) + now.unnamed} clients have answered."
    if now.unnamed:
        note += f" The names of the other {now.unnamed} are known when they answer."
    if cut:
        note += f" {cut} are not listed."
    table = TextTable.of(
        f"Clients of round {now.round}",
        found,
        ("client", lambda c: c.name),
        ("tier", lambda c: c.tier),
        ("state", lambda c: SIGNS[c.state] + (f": {c.reason}" if c.reason else "")),
        ("k", lambda c: count_text(c.top_k)),
        *((name, partial(_live, number)) for number, name in enumerate(live_headings())),
        ("virtual time", lambda c: seconds_text(c.virtual_seconds)),
        ("steps stale", lambda c: count_text(c.staleness)),
        num_words=3,
        note=note,
    )
    return table.without_empty("virtual time", "steps stale")


def failures(now: RunState) -> TextTable:
    """Return the reasons for which updates were kept out of the average, in all rounds."""
    return TextTable.of(
        "Updates refused or lost",
        now.quarantine,
        ("last reason", lambda group: group.reason),
        ("code", lambda group: group.code or DASH),
        ("clients", lambda group: listed(group.names)),
        ("times", lambda group: count_text(group.count)),
        ("last in round", lambda group: count_text(group.last_round)),
        num_words=3,
        note="Numbers in a reason may differ from time to time.",
    )


def costs(now: RunState) -> TextTable:
    """Return, per tier, the work of its clients in all rounds."""
    table = TextTable.of(
        "All rounds so far",
        now.tiers,
        ("tier", lambda t: t.name),
        ("device", lambda t: t.device or DASH),
        ("clients", lambda t: count_text(t.num_clients)),
        ("answers", lambda t: count_text(t.answers)),
        ("failed", lambda t: count_text(t.failures or None)),
        ("tokens", lambda t: count_text(t.tokens)),
        ("time of one", lambda t: seconds_text(t.seconds / t.answers if t.answers else None)),
        ("sent", lambda t: bytes_text(t.bytes_down)),
        ("sent back", lambda t: bytes_text(t.bytes_up)),
        num_words=2,
    )
    return table.without_empty("device")


def runs(folder: FolderState) -> TextTable:
    """Return a row per run: its progress and its newest scores, by tier if all have the same."""
    known = [r for r in folder.runs if isinstance(r, RunState)]
    same = len({tuple(t.name for t in r.tiers) for r in known}) == 1
    tiers = [t.name for t in known[0].tiers] if same else []
    rows = []
    for run in folder.runs:
        if isinstance(run, Unreadable):
            rows.append([run.run, run.error, *[DASH] * (len(tiers) + 5)])
            continue
        newest = {t.name: t.scores[-1] for t in run.tiers if t.scores}
        rows.append(
            [
                run.run,
                run.phase,
                f"{run.num_finished}/{run.num_rounds}",
                seconds_text(run.seconds_left),
                count_text(run.num_failures or None),
                *(_of(newest.get(t), "score", percent_text) for t in tiers),
                percent_text(_mean(s.score for s in newest.values())),
                number_text(_mean(s.loss for s in newest.values())),
            ]
        )
    columns = ["run", "state", "rounds", "left", "failed", *tiers, "mean of tiers", "loss"]
    note = "Newest scores; loss: mean of tiers."
    table = TextTable("Runs", columns, rows, num_words=2, note=note)
    return table.without_empty("left", "failed")


def _mean(values: Iterable[float | None]) -> float | None:
    found = [*values]
    return None if None in found or not found else sum(x or 0.0 for x in found) / len(found)


def _live(number: int, c: ClientState) -> str:
    return live_cells(c.reported)[number]


def _of(score: Score | None, name: str, text: Callable[[float | None], str]) -> str:
    return text(getattr(score, name) if score else None)
