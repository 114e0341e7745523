"""Clients that score on their own rows: each one's score, the worst ones, and their rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fedmoe.messages.rows import REASONS, RowCounts
from fedmoe.report.ledger import Record
from fedmoe.report.run import Run, TierCost
from fedmoe.report.text_table import TextTable
from fedmoe.report.units import DASH, count_text, number_text, percent_text

USES = ("read", "train", "validation", "test")
"""Columns for the rows that are used."""
MOST_ROWS = 200
"""Clients in a table of a report."""


@dataclass(frozen=True)
class OwnScore:
    """One client's test scores, without an adapter and with the last one."""

    client: int
    name: str
    tier: TierCost
    """Its own, at whose k it scores."""
    before: Record
    after: Record
    """Each with `loss`, `score` and `examples`; empty where the client gave none."""
    withheld: bool = False

    def share(self, scores: Record) -> str:
        """Return one of its scores in percent."""
        return "withheld" if self.withheld and not scores else percent_text(scores.get("score"))


def own_scores(run: Run) -> list[OwnScore]:
    """Return the clients' scores on their own test rows, the lowest first."""
    found = []
    for tier in run.tiers:
        first = [e for e in run.curve("test", tier.name) if e["round"] == 0]
        before = _by_client(first[0] if first else {})
        after = _by_client(run.last_test(tier.name) or {})
        found += [
            OwnScore(c, run.name_of(c), tier, before.get(c, {}), after.get(c, {}))
            # Where all score at every tier, it is their own that counts.
            for c in sorted({*before, *after} & {*tier.clients})
        ]
    known = {s.client for s in found if s.after}
    found = [s for s in found if s.client in known or s.client not in run.withheld]
    for client in {*run.withheld} - known:
        found.append(OwnScore(client, run.name_of(client), run.tier_of(client), {}, {}, True))
    return sorted(found, key=_place)


def _place(s: OwnScore) -> tuple[bool, float, float, int]:
    """Return what a client's place depends on: scores come first, the lowest at the top."""
    scores = s.after or s.before
    return s.withheld, scores.get("score") or 0.0, -(scores.get("loss") or 0.0), s.client


def _by_client(evaluation: Record) -> dict[int, Record]:
    return {score["client"]: score for score in evaluation.get("clients") or ()}


def client_scores(run: Run) -> TextTable:
    """Return each client's test score on its own rows; no rows where no client scores."""
    note = "On each client's own held-out rows, at its tier's k. The lowest score comes first."
    if run.withheld:
        note += f" {len(run.withheld)} client(s) withhold their scores."
    scores = own_scores(run)
    others = dict.fromkeys(name for s in scores for name in s.after.get("metrics") or ())
    score: list[tuple[str, Callable[[OwnScore], str]]] = [
        (f"{run.score_name} before", lambda s: s.share(s.before)),
        ("after", lambda s: s.share(s.after)),
    ]
    return TextTable.of(
        "Scores of clients",
        scores,
        ("client", lambda s: s.name),
        ("tier", lambda s: s.tier.name),
        ("k", lambda s: count_text(s.tier.top_k)),
        *(score if run.scored else ()),
        *((name.replace("_", " "), _metric_of(name)) for name in others),
        ("loss before", lambda s: number_text(s.before.get("loss"))),
        ("after", lambda s: number_text(s.after.get("loss"))),
        ("examples", lambda s: count_text((s.after or s.before).get("examples"))),
        num_words=2,
        note=note,
    )


def _metric_of(name: str) -> Callable[[OwnScore], str]:
    return lambda s: percent_text((s.after.get("metrics") or {}).get(name))


def client_rows(run: Run) -> TextTable:
    """Return what became of each client's rows, as it said; no rows where none said."""
    rows = {run.name_of(client): counts for client, counts in sorted(run.rows.items())}
    table = rows_table(rows, most=MOST_ROWS)
    return replace(table, note=f"As the clients said. {table.note}".strip())


def rows_table(
    rows: Mapping[str, RowCounts], tiers: Mapping[str, str] | None = None, most: int | None = None
) -> TextTable:
    """Return what became of each client's rows, and of all; reasons that nobody has are left out.

    Args:
        tiers: each client's tier, if it is to be shown.
        most: of more clients, those are shown that lose most rows, then the largest.
    """
    names, note, tiers = [*rows], "", tiers or {}
    if most is not None and len(names) > most:
        first = sorted(names, key=lambda n: (-sum(rows[n].dropped.values()), -rows[n].read))[:most]
        names = [name for name in names if name in {*first}]
        note = f"Of {len(rows)} clients the {most} that lose most rows, then the largest."
    shown = [(name, tiers.get(name, DASH), rows[name]) for name in names]
    if len(rows) > 1:
        shown.append(("all", DASH, RowCounts.total(rows.values())))
    reasons = [name for name in REASONS if any(getattr(counts, name) for counts in rows.values())]
    return TextTable.of(
        "Rows of clients",
        shown,
        ("client", lambda row: row[0]),
        *([("tier", lambda row: row[1])] if tiers else []),
        *((n.replace("_", " "), _count_of(n)) for n in (*USES, *reasons)),
        num_words=2 if tiers else 1,
        note=note,
    )


def _count_of(name: str) -> Callable[[tuple[str, str, RowCounts]], str]:
    return lambda row: count_text(getattr(row[2], name))


def spread_facts(run: Run) -> list[tuple[str, str]]:
    """Return the worst client, the worst tenth and the spread of the clients' test scores."""
    scores = [s for s in own_scores(run) if s.after]
    if len(scores) < 2 or not run.scored:
        return []
    values = [s.after["score"] or 0.0 for s in scores]
    tenth = values[: math.ceil(len(values) / 10)]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [
        ("Mean of clients", percent_text(mean)),
        ("Worst client", f"{scores[0].name}, {percent_text(values[0])}"),
        ("Worst tenth of clients", f"{percent_text(sum(tenth) / len(tenth))} ({len(tenth)})"),
        ("Spread of clients", f"{100 * deviation:.1f} points (standard deviation)"),
    ]


def untested(run: Run) -> int:
    """Return how many clients hold no test rows, as they said."""
    return sum(not counts.test for counts in run.rows.values())


def row_facts(run: Run) -> list[tuple[str, str]]:
    """Return the account of all rows: as the clients said, where they alone have them."""
    if run.rows:
        return [("Rows", str(RowCounts.total(run.rows.values())))]
    return [("Rows", str(RowCounts(**run.header["rows"])))] if "rows" in run.header else []
