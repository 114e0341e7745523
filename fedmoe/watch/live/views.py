"""The tables that a terminal and the page share, as text."""

from __future__ import annotations

from fedmoe.report.fields import live_cells, live_headings
from fedmoe.report.tables import Table, without
from fedmoe.report.units import (
    DASH,
    bytes_text,
    count_text,
    number_text,
    percent_text,
    seconds_text,
)
from fedmoe.watch.live.parts import ClientNow, Score, TierNow
from fedmoe.watch.live.place import PlaceNow
from fedmoe.watch.live.state import RunNow, Unreadable

MOST_CLIENTS = 200
"""Clients of a round that are listed; failed ones first, where there are more."""
SIGNS = {"ok": "\u2713 ok", "failed": "\u2717 failed", "awaited": "\u2026 not heard yet"}
"""Told apart without colour."""


def scores(now: RunNow) -> Table:
    """Per tier, the newest validation and test scores, and the base model's."""
    rows = []
    for tier in now.tiers:
        base = _newest(tier, "test", first=True)
        validation, test = _newest(tier, "validation"), _newest(tier, "test")
        rows.append(
            [tier.name, count_text(tier.top_k), *_score(base), *_score(validation), *_score(test)]
        )
    columns = ["tier", "k", "base", "loss", "validation", "loss", "round", "test", "loss", "round"]
    for row in rows:
        del row[4]  # the base model's round, which is 0
    if all(row[7] == DASH for row in rows):  # no test yet but the base model's
        columns, rows = columns[:7], [row[:7] for row in rows]
    score = now.score_name.capitalize()
    note = f"{score}, newest; loss per token. Base: without an adapter, on test."
    return Table("Scores per tier", columns, rows, note=note)


def clients(now: RunNow) -> Table:
    """The clients of the round, with tier, state, and what they measured."""
    found = now.clients
    if cut := max(0, len(found) - MOST_CLIENTS):
        found = sorted(found, key=lambda c: c.state != "failed")[:MOST_CLIENTS]
    answered = sum(c.state != "awaited" for c in now.clients)
    note = f"{answered} of {len(now.clients) + now.unnamed} clients have answered."
    if now.unnamed:
        note += f" Who the other {now.unnamed} are is known when they answer."
    if cut:
        note += f" {cut} are not listed."
    columns = ["client", "tier", "state", "k", *live_headings(), "virtual time", "steps stale"]
    rows = [_client(c) for c in found]
    table = Table(f"Clients of round {now.round}", columns, rows, num_words=3, note=note)
    for i, column in ((-1, "steps stale"), (-2, "virtual time")):
        if all(row[i] == DASH for row in rows):
            table = without(table, column)
    return table


def quarantine(now: RunNow) -> Table:
    """Why updates were kept out of the average, in all rounds."""
    rows = [
        [
            q.reason,
            q.code or DASH,
            _listed(q.clients),
            count_text(q.count),
            count_text(q.last_round),
        ]
        for q in now.quarantine
    ]
    columns = ["last reason", "code", "clients", "times", "last in round"]
    note = "Numbers in a reason may differ from time to time."
    return Table("Updates refused or lost", columns, rows, num_words=3, note=note)


def costs(now: RunNow) -> Table:
    """Per tier, what its clients have done in all rounds."""
    rows = [
        [
            t.name,
            t.device or DASH,
            count_text(t.num_clients),
            count_text(t.answers),
            count_text(t.failures) if t.failures else DASH,
            count_text(t.tokens),
            seconds_text(t.seconds / t.answers if t.answers else None),
            bytes_text(t.bytes_down),
            bytes_text(t.bytes_up),
        ]
        for t in now.tiers
    ]
    columns = ["tier", "device", "clients", "answers", "failed", "tokens", "time of one"]
    table = Table("All rounds so far", [*columns, "sent", "sent back"], rows, num_words=2)
    bare = all(t.device is None for t in now.tiers)
    return without(table, "device") if bare else table


def runs(place: PlaceNow) -> Table:
    """A line a run: where it is, and its newest scores."""
    tiers = dict.fromkeys(t.name for r in place.runs if isinstance(r, RunNow) for t in r.tiers)
    rows = []
    for run in place.runs:
        if isinstance(run, Unreadable):
            rows.append([run.run, run.error, *[DASH] * (len(tiers) + 3)])
            continue
        newest = {t.name: t.scores[-1].score for t in run.tiers if t.scores}
        failed = sum(q.count for q in run.quarantine)
        rows.append(
            [
                run.run,
                run.phase,
                f"{run.num_finished}/{run.num_rounds}",
                seconds_text(run.seconds_left),
                count_text(failed) if failed else DASH,
                *(percent_text(newest.get(t)) for t in tiers),
            ]
        )
    columns = ["run", "state", "rounds", "left", "failed", *tiers]
    return Table("Runs", columns, rows, num_words=2, note="Newest score of each tier.")


def _client(c: ClientNow) -> list[str]:
    state = SIGNS[c.state] if c.reason is None else f"{SIGNS[c.state]}: {c.reason}"
    return [
        str(c.client),
        c.tier,
        state,
        count_text(c.top_k),
        *live_cells(c.reported),
        seconds_text(c.virtual_seconds),
        count_text(c.staleness),
    ]


def _newest(tier: TierNow, split: str, *, first: bool = False) -> Score | None:
    """The last score on a split after round 0, or the one of round 0."""
    found = [s for s in tier.scores if s.split == split and (s.round == 0) == first]
    return found[-1] if found else None


def _score(score: Score | None) -> list[str]:
    if score is None:
        return [DASH] * 3
    return [percent_text(score.score), number_text(score.loss), str(score.round)]


def _listed(clients: tuple[int, ...], most: int = 8) -> str:
    shown = ", ".join(map(str, clients[:most]))
    return shown if len(clients) <= most else f"{shown} and {len(clients) - most} more"
