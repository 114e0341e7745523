"""The tables of a run's report."""

import math
from collections.abc import Callable, Iterable

from fedmoe.report.fields import IN_REPORT, largest, total_cells
from fedmoe.report.ledger import Record
from fedmoe.report.privacy import WITHHELD
from fedmoe.report.run import Run, TierCost
from fedmoe.report.text_table import TextTable
from fedmoe.report.units import (
    DASH,
    bytes_text,
    count_text,
    flops_text,
    number_text,
    percent_text,
    seconds_text,
)


def test_scores(run: Run) -> TextTable:
    """Return, per tier, test loss and score of the base model and of the last adapter."""
    ends: list[tuple[TierCost, Record, Record]] = []
    for tier in run.tiers:
        before = [e for e in run.curve("test", tier.name) if e["round"] == 0]
        ends.append((tier, before[0] if before else {}, run.last_test(tier.name) or {}))
    others = dict.fromkeys(name for _, _, after in ends for name in after.get("metrics") or ())
    score: list[tuple[str, Callable[[tuple[TierCost, Record, Record]], str]]] = [
        ("before", lambda end: percent_text(end[1].get("score"))),
        ("after", lambda end: percent_text(end[2].get("score"))),
        ("points", lambda end: _difference(end[1].get("score"), end[2].get("score"))),
    ]
    if run.is_share:
        score.append(("95% interval", lambda end: _interval(end[2])))
    score = score if run.scored else []
    loss = [
        ("loss before", lambda end: number_text(end[1].get("loss"))),
        ("loss after", lambda end: number_text(end[2].get("loss"))),
    ]
    said = f"{run.score_name.capitalize()} and loss" if run.scored else "Loss"
    interval = " Interval: of the score after." if run.is_share else ""
    return TextTable.of(
        "Test scores",
        ends,
        ("tier", lambda end: end[0].name),
        ("k", lambda end: count_text(end[0].top_k)),
        *(score + loss if run.measure == "score" else loss + score),
        *((name.replace("_", " "), _metric_of(name)) for name in others),
        ("examples", lambda end: count_text((end[2] or end[1]).get("examples"))),
        note=f"{said} per token, before: without an adapter.{interval} k: experts per token.",
    )


def _metric_of(name: str) -> Callable[[tuple[TierCost, Record, Record]], str]:
    return lambda end: percent_text((end[2].get("metrics") or {}).get(name))


def label_scores(run: Run) -> TextTable:
    """Return the last adapter's test score for each label, per tier."""
    by_tier = {t.name: e["by_label"] for t in run.tiers if (e := run.last_test(t.name))}
    labels = sorted({label for scores in by_tier.values() for label in scores if label})
    return TextTable(
        f"Test {run.score_name} by label",
        ["label", *by_tier],
        [[label, *(percent_text(s.get(label)) for s in by_tier.values())] for label in labels],
    )


def tier_costs(run: Run) -> TextTable:
    """Return, per tier, the costs of one client: planned, and measured where possible."""
    done = {tier.name: run.ok(tier=tier.name) for tier in run.tiers}
    hidden = WITHHELD if run.private else ""
    return TextTable.of(
        "Cost per tier",
        run.tiers,
        ("tier", lambda t: t.name),
        ("k", lambda t: count_text(t.top_k)),
        ("clients", lambda t: count_text(len(t.clients))),
        ("trainable parameters", lambda t: count_text(t.parameters)),
        ("work per token", lambda t: flops_text(t.train_flops_per_token)),
        ("down", lambda t: bytes_text(t.bytes_down)),
        ("up", lambda t: bytes_text(t.bytes_up)),
        ("memory, estimated", lambda t: bytes_text(t.memory_bytes)),
        ("memory, measured", lambda t: hidden or bytes_text(largest(done[t.name], "peak_bytes"))),
        ("time per round", lambda t: hidden or seconds_text(_mean_seconds(done[t.name]))),
        note="One client, one round. Measured memory is the peak of the whole process; on a GPU, "
        "that of the client's own work and of all that the model stores there.",
    )


def tier_shares(run: Run) -> TextTable:
    """Return each tier's share of the experts' means; no rows without such means, or one tier."""
    rounds = [r["tier_shares"] for r in run.rounds if "tier_shares" in r]
    clients = sum(len(tier.clients) for tier in run.tiers) or 1

    def mean(tier: TierCost) -> float:
        return sum(shares.get(tier.name, 0.0) for shares in rounds) / len(rounds)

    return TextTable.of(
        "Tiers in the mean",
        run.tiers if rounds and len(run.tiers) > 1 else (),
        ("tier", lambda t: t.name),
        ("k", lambda t: count_text(t.top_k)),
        ("share of clients", lambda t: percent_text(len(t.clients) / clients)),
        ("share of every mean", lambda t: percent_text(mean(t))),
        note="How much of an expert's next value comes from a tier's clients: their weights in the "
        "strategy's mean, over the experts that anybody trained, then over rounds.",
    )


def memory_options(run: Run) -> TextTable:
    """Return, per tier, memory options, bytes of frozen experts and test score.

    There are no rows where no tier uses a memory option.
    """
    scores = {t.name: e["score"] for t in run.tiers if (e := run.last_test(t.name))}
    return TextTable.of(
        "Memory options",
        run.tiers if any(t.memory_options for t in run.tiers) else (),
        ("tier", lambda t: t.name),
        ("frozen experts", lambda t: t.memory_options or DASH),
        ("k", lambda t: count_text(t.top_k)),
        ("bytes on the client", lambda t: bytes_text(t.expert_bytes)),
        ("saved", lambda t: percent_text(_saved(t))),
        (run.score_name, lambda t: percent_text(scores.get(t.name))),
        num_words=2,
        note="Bytes: planned, of frozen experts alone. Score: on test data, with the experts that "
        "the tier trains with; tiers with another k differ by that, too.",
    )


def clients(run: Run) -> TextTable:
    """Return, per client, its data and the sums over its rounds."""
    rows = [_client_row(run, tier, c) for tier in run.tiers for c in sorted(tier.clients)]
    columns = ["client", "tier", "mostly", "k", "rounds", "failed"]
    columns += [*(field.label for field in IN_REPORT), "tokens/s", "bytes both ways"]
    note = "Sums over all rounds. Loss: local, before the first round and after the last."
    table = TextTable("Clients", columns, rows, num_words=3, note=note)
    return table.without_empty("mostly")


def _client_row(run: Run, tier: TierCost, client: int) -> list[str]:
    done = run.ok(client=client)
    failed = sum(c["status"] == "failed" for c in run.of_client.get(client, ()))
    tokens, seconds = (sum(c.get(name, 0) for c in done) for name in ("tokens", "seconds"))
    known = {"examples": run.num_examples[client]} if client in run.num_examples else {}
    return [
        run.name_of(client),
        tier.name,
        _mostly(run.labels.get(client, {})),
        count_text(tier.top_k),
        count_text(len(done)),
        count_text(failed or None),
        *total_cells(done, known, WITHHELD if run.private and done else ""),
        WITHHELD if run.private and done else count_text(tokens / seconds if seconds else None),
        bytes_text(sum(c["bytes_down"] + c["bytes_up"] for c in done)),
    ]


def faults(run: Run) -> TextTable:
    """Return how often each kind of fault was injected, and its outcomes."""
    outcomes = ("lost", "refused", "slowed", "not noticed")
    rows = []
    for kind in sorted({fault["fault"] for fault in run.faults}):
        found = [fault["outcome"] for fault in run.faults if fault["fault"] == kind]
        counts = [count_text(found.count(outcome) or None) for outcome in outcomes]
        rows.append([kind, count_text(len(found)), *counts])
    note = (
        "Faults injected into client rounds on purpose. Lost or refused: the round continued "
        "without the update. Not noticed: damage that the server's checks did not find."
    )
    return TextTable("Faults injected", ["fault", "injected", *outcomes], rows, note=note)


def failures(run: Run) -> TextTable:
    """Return every client round that did not arrive, with its reason."""
    return TextTable.of(
        "Failures",
        [c for c in run.clients if c["status"] == "failed"],
        ("round", lambda c: str(c["round"])),
        ("client", lambda c: run.name_of(c["client"])),
        ("tier", lambda c: c["tier"]),
        ("code", lambda c: c.get("code", DASH)),
        ("reason", lambda c: c["reason"]),
        num_words=5,
    )


def phases(run: Run) -> TextTable:
    """Return the wall time of each phase; no rows for a run without an end."""
    if run.end is None:
        return TextTable("Wall time", [], [])
    total = run.end["seconds"]
    parts = [*run.end["phases"].items()]
    # A ledger of an older version has the phases since the last interruption alone.
    rest = max(0.0, total - sum(seconds for _, seconds in parts))
    parts.append(("before it was interrupted" if run.num_resumed else "other", rest))
    return TextTable.of(
        "Wall time",
        [*parts, ("total", total)],
        ("phase", lambda part: part[0]),
        ("time", lambda part: seconds_text(part[1])),
        ("share", lambda part: percent_text(part[1] / total if total else None)),
    )


def schedule(run: Run) -> TextTable:
    """Return, per round, how well its training filled the workers; empty if not measured."""
    return TextTable.of(
        "Schedule of training",
        [r for r in run.rounds if "makespan_seconds" in r],
        ("round", lambda r: str(r["round"])),
        ("clients", lambda r: count_text(r["clients"] - r["failed"])),
        ("workers", lambda r: count_text(r["workers"])),
        ("sum of clients", lambda r: seconds_text(r["busy_seconds"])),
        ("ideal", lambda r: seconds_text(r["ideal_seconds"])),
        ("measured", lambda r: seconds_text(r["makespan_seconds"])),
        ("gap", lambda r: gap_text([r])),
        note="Ideal: the longest client, or the sum of all divided by the number of workers, if "
        "that is longer.",
    )


def gap_text(rounds: Iterable[Record]) -> str:
    """Return by how much training took longer than an ideal schedule, in percent."""
    known = [r for r in rounds if r.get("ideal_seconds")]
    ideal = sum(r["ideal_seconds"] for r in known)
    return percent_text(sum(r["makespan_seconds"] for r in known) / ideal - 1 if ideal else None)


def wilson_interval(share: float, number: int) -> tuple[float, float]:
    """Return the 95% interval of a share of `number` examples.

    For a score that lies between 0 and 1 for single examples, too, it is wider than needed.

    Source: Wilson 1927 (Journal of the American Statistical Association 22(158)).
    """
    z, share = 1.96, min(max(share, 0.0), 1.0)
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


def _mean_seconds(done: list[Record]) -> float | None:
    return sum(c.get("seconds", 0) for c in done) / len(done) or None if done else None


def _saved(tier: TierCost) -> float | None:
    return 1 - tier.expert_bytes / tier.full_expert_bytes if tier.full_expert_bytes else None


def _mostly(labels: dict[str, int]) -> str:
    """Return a client's most frequent label and its share, which shows how skewed its data are."""
    if not {*labels} - {""}:
        return DASH
    label = max(labels, key=lambda name: labels[name])
    return f"{label} {100 * labels[label] / sum(labels.values()):.0f}%"
