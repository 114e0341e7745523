"""The own metrics that clients' local steps report: their means, and a table of them."""

from __future__ import annotations

from collections.abc import Iterable

from fedmoe.report.ledger import Record
from fedmoe.report.run import Run
from fedmoe.report.text_table import TextTable
from fedmoe.report.units import count_text, number_text


def metric_means(lines: Iterable[Record]) -> dict[str, float]:
    """Return the mean of each own metric over the clients that report it, by name.

    >>> metric_means([{"metrics": {"norm": 1.0}}, {"metrics": {"norm": 3.0, "skew": 0.5}}, {}])
    {'norm': 2.0, 'skew': 0.5}
    """
    found = _values(lines)
    return {name: sum(values) / len(values) for name, values in found.items()}


def own_metrics(run: Run) -> TextTable:
    """Return a row for each own metric: its mean in its first and last round, and its range."""
    done = run.ok()
    by_round: dict[int, list[Record]] = {}
    for line in done:
        by_round.setdefault(line["round"], []).append(line)
    means = [metric_means(lines) for _, lines in sorted(by_round.items())]
    rows = []
    for name, values in sorted(_values(done).items()):
        course = [m[name] for m in means if name in m]
        numbers = (course[0], course[-1], min(values), max(values))
        rows.append([name, count_text(len(values)), *map(number_text, numbers)])
    columns = ["metric", "reports", "mean, first round", "mean, last round", "least", "most"]
    note = "As the clients' own local step reports them; a mean is over a round's clients."
    return TextTable("Own metrics", columns, rows, note=note)


def _values(lines: Iterable[Record]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line.get("metrics", {}).items():
            found.setdefault(name, []).append(value)
    return found
