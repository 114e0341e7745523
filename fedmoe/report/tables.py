"""The tables of a report, as text in rows and columns: HTML and Markdown show the same."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fedmoe.report.fields import IN_REPORT, largest, total_cells
from fedmoe.report.ledger import Record
from fedmoe.report.run import Run
from fedmoe.report.units import (
    DASH,
    bytes_text,
    count_text,
    flops_text,
    number_text,
    percent_text,
    seconds_text,
)


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `num_words` columns are words, the others numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    num_words: int = 1
    note: str = ""


def test_scores(run: Run) -> Table:
    """Per tier, test loss and score of the base model and of the last adapter."""
    rows = []
    for tier in run.tiers:
        points = {e["round"]: e for e in run.curve("test", tier.name)}
        before = points.pop(0, {})
        after = points[max(points)] if points else {}
        rows.append(
            [
                tier.name,
                count_text(tier.top_k),
                percent_text(before.get("score")),
                percent_text(after.get("score")),
                _difference(before.get("score"), after.get("score")),
                _interval(after),
                percent_text(after.get("exact_match")),
                number_text(before.get("loss")),
                number_text(after.get("loss")),
                count_text((after or before).get("examples")),
            ]
        )
    columns = ["tier", "k", f"{run.score_name} before", "after", "points", "95% interval"]
    columns += ["exact match", "loss before", "after", "examples"]
    note = "Before: without an adapter. Interval: of the score after. k: experts per token."
    table = Table("Test scores", columns, rows, note=note)
    return without(table, "exact match") if run.score_name == "exact match" else table


def label_scores(run: Run) -> Table:
    """Test score of the last adapter for each label, per tier."""
    last = {t.name: run.curve("test", t.name)[-1:] for t in run.tiers}
    by_tier = {name: e[0]["by_label"] for name, e in last.items() if e and e[0]["round"] > 0}
    labels = sorted({label for scores in by_tier.values() for label in scores})
    return Table(
        f"Test {run.score_name} by label",
        ["label", *by_tier],
        [[label, *(percent_text(s.get(label)) for s in by_tier.values())] for label in labels],
    )


def tier_costs(run: Run) -> Table:
    """Per tier, what one client costs: planned, and measured where it can be."""
    rows = []
    for tier in run.tiers:
        done = run.ok(tier=tier.name)
        seconds = sum(c["seconds"] for c in done) / len(done) if done else None
        rows.append(
            [
                tier.name,
                count_text(tier.top_k),
                count_text(len(tier.clients)),
                count_text(tier.parameters),
                flops_text(tier.train_flops_per_token),
                bytes_text(tier.bytes_down),
                bytes_text(tier.bytes_up),
                bytes_text(tier.memory_bytes),
                bytes_text(largest(done, "peak_bytes")),
                seconds_text(seconds),
            ]
        )
    columns = ["tier", "k", "clients", "trainable parameters", "work per token", "down", "up"]
    columns += ["memory, estimated", "memory, measured", "time per round"]
    note = (
        "One client, one round; measured memory is the peak of the process, on a GPU of the "
        "client's own work there with all that the model holds."
    )
    return Table("Cost per tier", columns, rows, note=note)


def clients(run: Run) -> Table:
    """Per client, its data and the sums over its rounds."""
    rows = [_client_row(run, c) for tier in run.tiers for c in sorted(tier.clients)]
    columns = ["client", "tier", "mostly", "k", "rounds", "failed"]
    columns += [*(field.label for field in IN_REPORT), "tokens/s", "bytes both ways"]
    note = "Sums over all rounds. Loss: local, before the first round and after the last."
    return Table("Clients", columns, rows, num_words=3, note=note)


def _client_row(run: Run, client: int) -> list[str]:
    done = run.ok(client=client)
    tier = run.tier_of(client)
    failed = sum(c["client"] == client and c["status"] == "failed" for c in run.clients)
    tokens, seconds = sum(c["tokens"] for c in done), sum(c["seconds"] for c in done)
    known = {"examples": run.num_examples[client]} if client in run.num_examples else {}
    return [
        str(client),
        tier.name,
        _mostly(run.labels.get(client, {})),
        count_text(tier.top_k),
        count_text(len(done)),
        count_text(failed) if failed else DASH,
        *total_cells(done, known),
        count_text(tokens / seconds if seconds else None),
        bytes_text(sum(c["bytes_down"] + c["bytes_up"] for c in done)),
    ]


def faults(run: Run) -> Table:
    """How often each kind of fault was injected, and what came of it."""
    outcomes = ("lost", "refused", "slowed", "not noticed")
    kinds = sorted({fault["fault"] for fault in run.faults})
    rows = []
    for kind in kinds:
        found = [fault["outcome"] for fault in run.faults if fault["fault"] == kind]
        counts = [found.count(outcome) for outcome in outcomes]
        rows.append([kind, count_text(len(found)), *(count_text(n) if n else DASH for n in counts)])
    note = (
        "Client rounds that were struck on purpose. Lost or refused: the round went on without the "
        "update. Not noticed: damage that the server's checks did not find."
    )
    return Table("Faults injected", ["fault", "injected", *outcomes], rows, note=note)


def failures(run: Run) -> Table:
    """Every client round that did not arrive, and why."""
    rows = [
        [str(c["round"]), str(c["client"]), c["tier"], c.get("code", DASH), c["reason"]]
        for c in run.clients
        if c["status"] == "failed"
    ]
    return Table("Failures", ["round", "client", "tier", "code", "reason"], rows, num_words=5)


def phases(run: Run) -> Table:
    """Where the wall time went."""
    if run.end is None:
        return Table("Wall time", [], [])
    total = run.end["seconds"]
    parts = [*run.end["phases"].items()]
    parts.append(("other", max(0.0, total - sum(seconds for _, seconds in parts))))
    rows = [
        [name, seconds_text(seconds), percent_text(seconds / total if total else None)]
        for name, seconds in [*parts, ("total", total)]
    ]
    return Table("Wall time", ["phase", "time", "share"], rows)


def schedule(run: Run) -> Table:
    """Per round, how its training filled the workers; empty where nobody measured it."""
    names = ("busy_seconds", "ideal_seconds", "makespan_seconds")
    rows = [
        [
            str(r["round"]),
            count_text(r["clients"] - r["failed"]),
            count_text(r["workers"]),
            *(seconds_text(r[name]) for name in names),
            gap_text([r]),
        ]
        for r in run.rounds
        if "makespan_seconds" in r
    ]
    columns = ["round", "clients", "workers", "sum of clients", "ideal", "measured", "gap"]
    note = "Ideal: the longest client, or the sum of all shared by the workers, if that is longer."
    return Table("Schedule of training", columns, rows, note=note)


def gap_text(rounds: Iterable[Record]) -> str:
    """How much longer the training of these rounds took than an ideal schedule would have."""
    known = [r for r in rounds if r.get("ideal_seconds")]
    ideal = sum(r["ideal_seconds"] for r in known)
    return percent_text(sum(r["makespan_seconds"] for r in known) / ideal - 1 if ideal else None)


def pairs(title: str, columns: list[str], values: Iterable[tuple[str, str]]) -> Table:
    """Names and values, such as settings."""
    return Table(title, columns, [[*pair] for pair in values], num_words=2)


def without(table: Table, column: str) -> Table:
    """The table without one column."""
    i = table.columns.index(column)
    columns = table.columns[:i] + table.columns[i + 1 :]
    rows = [row[:i] + row[i + 1 :] for row in table.rows]
    return Table(table.title, columns, rows, table.num_words, table.note)


def wilson_interval(share: float, number: int) -> tuple[float, float]:
    """The 95% interval of a share of `number` examples (Wilson 1927).

    For a score between 0 and 1 that is not always one of them it is wider than need be.
    """
    z = 1.96
    centre = (share + z * z / (2 * number)) / (1 + z * z / number)
    spread = z * math.sqrt(share * (1 - share) / number + z * z / (4 * number**2))
    half = spread / (1 + z * z / number)
    return max(0.0, centre - half), min(1.0, centre + half)


def _interval(evaluation: Record) -> str:
    if evaluation.get("score") is None or not evaluation["examples"]:
        return DASH
    low, high = wilson_interval(evaluation["score"], evaluation["examples"])
    return f"{100 * low:.1f} {DASH} {100 * high:.1f}"


def _difference(before: float | None, after: float | None) -> str:
    return DASH if before is None or after is None else percent_text(after - before, signed=True)


def _mostly(labels: dict[str, int]) -> str:
    """A client's most frequent label and its share, which shows how skewed its data are."""
    if not labels:
        return DASH
    label = max(labels, key=lambda name: labels[name])
    return f"{label} {100 * labels[label] / sum(labels.values()):.0f}%"
