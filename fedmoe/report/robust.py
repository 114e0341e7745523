"""A table of the robust rule: its effect on each client."""

from __future__ import annotations

from fedmoe.report.ledger import Record
from fedmoe.report.run import Run
from fedmoe.report.text_table import TextTable
from fedmoe.report.units import count_text, percent_text


def robust_rule(run: Run) -> TextTable:
    """Return each client's mean over its rounds; no rows without a rule, or before it judged."""
    of_client: dict[int, list[Record]] = {}
    for line in run.judgements:
        for verdict in line["clients"]:
            of_client.setdefault(verdict["client"], []).append(verdict)
    rows = sorted(of_client.items())
    return TextTable.of(
        "Robust rule",
        rows,
        ("client", lambda row: run.name_of(row[0])),
        ("rounds", lambda row: count_text(len(row[1]))),
        ("clipped", lambda row: percent_text(_mean(row[1], "clipped"))),
        ("weight by the strategy", lambda row: percent_text(_mean(row[1], "share"))),
        ("by the rule", lambda row: percent_text(_mean(row[1], "share_after"))),
        ("parts refused", lambda row: count_text(sum(v["refused"] for v in row[1]))),
        ("of", lambda row: count_text(sum(v["trained"] for v in row[1]))),
        num_words=1,
        note=_note(run),
    )


def _mean(verdicts: list[Record], name: str) -> float:
    return sum(verdict[name] for verdict in verdicts) / len(verdicts)


def _note(run: Run) -> str:
    """Return the rule, and how often an expert had too few reporters for it."""
    if not run.judgements:
        return ""
    few, parts = (sum(line[name] for line in run.judgements) for name in ("few", "parts"))
    last = run.judgements[-1]
    out: dict[int, list[str]] = {}
    for line in run.judgements:
        for verdict in line["clients"]:
            if verdict["refused"] == verdict["trained"]:
                out.setdefault(verdict["client"], []).append(str(line["round"]))
    whole = "; ".join(f"{run.name_of(c)} in {', '.join(out[c])}" for c in sorted(out))
    return (
        f"By {last['rule']}. Clipped: the share of an update's norm that was cut off. Weight: the "
        "mean share over the experts and shared parts that the client trained. Of all "
        f"{parts:,} parts of all rounds {few:,} had fewer than {last['needed']} reporters, and "
        "were averaged with clipped updates and capped shares."
        + (f" Clients left out, by round: {whole}." if whole else "")
    )
