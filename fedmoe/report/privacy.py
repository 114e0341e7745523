"""Tables and a plot of a run whose clients' numbers are hidden: sums, and what was spent."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fedmoe.messages.records import SUMMED, Field
from fedmoe.report import figures
from fedmoe.report.fields import field_text
from fedmoe.report.ledger import Record
from fedmoe.report.run import Run
from fedmoe.report.text_table import TextTable
from fedmoe.report.units import DASH, number_text, percent_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WITHHELD = "withheld"


def private_rounds(run: Run) -> TextTable:
    """Return, per round, what is known of all its clients together; no rows where each is shown."""
    note = "Means over the round's clients, of which none is known alone."
    if any("epsilon" in line for line in run.private):
        note += " Spent: since the run's start. Bound: on a client's weighted change (L2). All but "
        note += "these have noise, of which few clients' means may consist alone."
    table = TextTable.of(
        "Rounds in sums",
        run.private,
        ("round", lambda line: str(line["round"])),
        ("epsilon spent", lambda line: number_text(line.get("epsilon"))),
        ("bound", lambda line: _short(line.get("clip"))),
        ("within it", lambda line: percent_text(line.get("within"))),
        *((field.label, partial(_mean, field)) for field in SUMMED),
        note=note,
    )
    for column in ("epsilon spent", "bound", "within it"):
        table = table.without_empty(column)
    return table


def privacy_facts(run: Run) -> list[tuple[str, str]]:
    """Return what was hidden, and what the run has spent, as names and values."""
    found = []
    masks = [v for key, v in run.settings.items() if key.startswith("secure_aggregation")]
    if masks not in ([], ["null"]):
        found.append(("Updates", "masked: the server saw sums alone"))
    spent = [line for line in run.private if "epsilon" in line]
    if spent:
        last = spent[-1]
        budget = run.settings.get("privacy.epsilon", DASH)
        found.append(
            (
                "Privacy spent",
                f"epsilon {number_text(last['epsilon'])} of {budget} at delta "
                f"{_short(last['delta'])}, noise {_short(last['noise_multiplier'])} times a "
                "client's norm",
            )
        )
    return found


def epsilon_per_round(run: Run) -> Figure | None:
    """Privacy spent since the start (epsilon): the lower, the less one client shows."""
    spent = [line for line in run.private if "epsilon" in line]
    if not spent:
        return None
    figure = figures.new_figure("Privacy spent: epsilon after each round")
    axes = figure.add_subplot()
    rounds, values = ([line[name] for line in spent] for name in ("round", "epsilon"))
    axes.plot([0, *rounds], [0, *values], "-o", color=figures.INK, markersize=4, clip_on=False)
    axes.margins(x=0.02, y=0.08)
    axes.set_ylim(bottom=0)
    figures.round_scale(axes)
    figures.dress(axes)
    return figure


def _short(value: float | None) -> str:
    return DASH if value is None else f"{value:.3g}"


def _mean(field: Field, line: Record) -> str:
    value = line.get(field.name)
    return field_text(field, None if value is None else field.type(value))
