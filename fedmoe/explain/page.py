"""An explained run as `explain.html` and `explain.json`: its headline, facts and tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmoe.explain import lift as lifts
from fedmoe.explain.calibration import BINS
from fedmoe.explain.plots import draw
from fedmoe.report.page import render
from fedmoe.report.text_table import TextTable
from fedmoe.report.units import DASH, count_text, listed, number_text, percent_text
from fedmoe.system.files import write_json, write_text

if TYPE_CHECKING:
    from fedmoe.explain.calibration import Calibration
    from fedmoe.explain.explained import Explained
    from fedmoe.explain.lift import Lifts
    from fedmoe.explain.recorded import Recorded

STRONGEST = 3
"""Experts that a table names of a group."""
MOST_SPECIALISED = 12


def write_explained(found: Explained, folder: Path) -> Path:
    """Write `explain.json` and the offline page `explain.html`, and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "explain.json", found.as_json())
    write_text(folder / "explain.html", page(found))
    return folder / "explain.html"


def page(found: Explained) -> str:
    """Return the page, with its plots inside."""
    first, *others = [groups(of) for of in found.groups] or [owners(found.recorded)]
    measured = [*others, specialised(found), calibrations(found), candidates(found), pairs(found)]
    return render(
        "fedmoe.report",
        "report.html",
        title=f"Experts of {found.name}",
        status="Finished" if found.complete else f"Interrupted after round {found.round}",
        complete=found.complete,
        headline=headline(found),
        facts=facts(found),
        steps=[],
        scores=first,
        pictures=draw(found),
        shown=measured,
        folded=[layers(found), *([owners(found.recorded)] if found.groups else [])],
    )


def headline(found: Explained) -> str:
    """Return what was found, in sentences."""
    if not found.groups and not found.calibration:
        return "Only what the run recorded can be shown; rows and adapter could not be looked at."
    said = []
    for of in found.groups:
        best, cells = int(of.information.argmax()), f"{of.marked.sum():,} of {of.judged.sum():,}"
        what = "tells" if of.chance < lifts.LEVEL else "does not surely tell"
        said.append(
            f"Routing {what} {of.kind}s apart (p = {of.chance:.3f}; up to "
            f"{number_text(of.information[best])} bits per choice, in layer {best}): {cells} "
            "lifts are marked."
        )
    if found.moved is not None:
        said.append(f"The adapter changes {percent_text(found.moved.changed.mean())} of choices.")
    return " ".join(said)


def facts(found: Explained) -> list[tuple[str, str]]:
    """Return what was looked at, and what could not be."""
    known = [
        ("Experts", f"{found.num_experts} in each of {found.num_layers} layers"),
        ("Routed at", f"tier {found.tier}, k = {found.top_k}"),
        ("Adapter", f"after round {found.round}"),
        (f"{found.split.capitalize()} rows", count_text(found.num_rows)),
        *(
            (f"{of.kind.capitalize()}s left out", listed(of.left_out))
            for of in found.groups
            if of.left_out
        ),
    ]
    return [*(known if found.num_rows else known[2:3]), *(("Note", note) for note in found.notes)]


def groups(of: Lifts) -> TextTable:
    """Return the experts that carry each group."""

    def highest(place: int) -> str:
        # The marked ones; the highest other one where none is.
        judged, marked = np.where(of.judged, of.lift, 0)[place], of.marked[place]
        carried = np.where(marked, judged, 0) if (judged[marked] > 1).any() else judged
        order, said = np.argsort(-carried, axis=None), []
        for n in order[: STRONGEST if carried is not judged else 1]:
            layer, expert = divmod(int(n), carried.shape[1])
            if carried[layer, expert] > 1:
                low, high = (side[place, layer, expert] for side in (of.low, of.high))
                star = "*" * bool(marked[layer, expert])
                lift = carried[layer, expert]
                said.append(f"{layer}.{expert}: {lift:.1f} ({low:.1f} to {high:.1f}){star}")
        return "; ".join(said) or DASH

    return TextTable.of(
        f"{of.kind.capitalize()}s and the experts that carry them",
        range(len(of.names)),
        (of.kind, lambda g: of.names[g]),
        ("highest lifts", highest),
        ("rows", lambda g: count_text(of.rows[g])),
        ("marked above 1", lambda g: count_text((of.marked[g] & (of.lift[g] > 1)).sum())),
        ("below", lambda g: count_text((of.marked[g] & (of.lift[g] < 1)).sum())),
        num_words=2,
        note=(
            "As layer.expert: lift (95% interval over rows). Lift is the share of the group's "
            f"tokens over the mean share of all groups. Of {of.lift.size:,} cells, "
            f"{of.judged.sum():,} have {lifts.LEAST_EXPECTED} expected tokens; a marked one (*) "
            f"has an interval without 1 even at {lifts.LEVEL:g} divided by that number."
        ),
    )


def specialised(found: Explained) -> TextTable:
    """Return the experts that groups use least alike."""
    rows = []
    for of in found.groups[:1]:
        carried = np.where(of.marked, of.lift, 0)
        certain = (carried > 1).any(0)
        order = np.argsort(np.where(certain, of.entropy, np.inf), axis=None)[:MOST_SPECIALISED]
        for n in order[: certain.sum()]:
            layer, expert = divmod(int(n), of.lift.shape[2])
            best = int(carried[:, layer, expert].argmax())
            numbers = [of.entropy[layer, expert], of.lift[best, layer, expert]]
            rows.append([f"{layer}.{expert}", of.names[best], *map(number_text, numbers)])
    note = "Entropy over groups: 1 is used alike by all, 0 by one alone. Experts marked above 1."
    columns = ["layer.expert", "mostly", "entropy", "lift"]
    return TextTable("The most specialised experts", columns, rows, 2, note)


def calibrations(found: Explained) -> TextTable:
    """Return each tier's expected calibration error."""

    def mean(values: np.ndarray, of: Calibration) -> str:
        return percent_text(float(np.nansum(values * of.tokens) / of.tokens.sum()))

    return TextTable.of(
        "Calibration",
        found.calibration,
        ("tier", lambda of: of.tier),
        ("k", lambda of: str(of.top_k)),
        ("rows", lambda of: count_text(of.rows)),
        ("tokens", lambda of: count_text(of.tokens.sum())),
        ("right", lambda of: mean(of.accuracy, of)),
        ("confidence", lambda of: mean(of.confidence, of)),
        ("calibration error", lambda of: percent_text(of.error)),
        ("95% interval", lambda of: f"{percent_text(of.low)} to {percent_text(of.high)}"),
        note=f"Expected calibration error over response tokens, {BINS} bins; 0 is best, and chance "
        "alone keeps it above.",
    )


def candidates(found: Explained) -> TextTable:
    """Return the experts to begin with, if some are to be left out."""
    of = found.redundancy
    return TextTable.of(
        "Experts that might be missed least",
        of.candidates if of else (),
        ("layer.expert", lambda c: f"{c.layer}.{c.expert}"),
        ("load", lambda c: number_text(c.load)),
        ("most like", lambda c: str(c.like)),
        ("CKA", lambda c: number_text(c.similarity)),
        note="Few of these rows' tokens (1 is the equal share), and another expert of the layer "
        "that answers alike. A place to begin, not a finding: rare tokens may need them, so score "
        "the model without them before they go.",
    )


def pairs(found: Explained) -> TextTable:
    """Return the experts that resemble each other most."""
    of = found.redundancy
    return TextTable.of(
        "The most similar experts",
        of.pairs if of else (),
        ("layer", lambda p: str(p.layer)),
        ("experts", lambda p: f"{p.first} and {p.second}"),
        ("CKA", lambda p: number_text(p.similarity)),
        note=f"Of their answers to the same {of.tokens if of else 0:,} tokens, whichever expert "
        "these were routed to.",
    )


def layers(found: Explained) -> TextTable:
    """Return everything that is known by layer."""
    columns: list[tuple[str, Callable[[int], str]]] = [("layer", str)]
    for of in found.groups:
        columns += [
            (f"bits on {of.kind}", _of(of.information)),
            ("by chance", _of(of.shuffled)),
            ("95% below", _of(of.shuffled_high)),
        ]
    if found.moved:
        columns += [("choices changed", _of(found.moved.changed))]
        columns += [("load moved", _of(found.moved.distance))]
    if found.redundancy and found.num_experts > 1:
        n = found.num_experts
        mean = (found.redundancy.similarity.sum((1, 2)) - n) / (n * (n - 1))
        columns.append(("mean CKA", _of(mean)))
    return TextTable.of("Layers", range(found.num_layers), *columns)


def owners(of: Recorded | None) -> TextTable:
    """Return what the run recorded of each owner."""

    def strongest(place: int) -> str:
        lift = of.lift[place] if of else np.zeros(0)
        if np.isnan(lift).all():
            return DASH
        cell = np.unravel_index(np.nanargmax(lift), lift.shape)
        return f"{cell[0]}.{cell[1]}: {lift[cell]:.1f}"

    return TextTable.of(
        "Owners' tokens in local training",
        range(len(of.names)) if of else (),
        ("owner", lambda c: of.names[c] if of else ""),
        ("tier", lambda c: of.tiers[c] if of else ""),
        ("highest lift", strongest),
        ("k", lambda c: str(of.top_k[c]) if of else ""),
        ("choices", lambda c: count_text(of.tokens[c].sum()) if of else ""),
        num_words=3,
        note="As the run recorded them, as layer.expert: lift over the mean of owners of the same "
        "k. They are sums, so there is no interval, and none is marked.",
    )


def _of(values: np.ndarray) -> Callable[[int], str]:
    return lambda layer: number_text(float(values[layer]))
