"""A run as it stands, or a line a run, for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from fedmoe.report.tables import Table
from fedmoe.report.units import bytes_text, seconds_text
from fedmoe.watch.live import views
from fedmoe.watch.live.place import PlaceNow
from fedmoe.watch.live.state import RunNow

STYLES = {"finished": "bold green", "running": "bold cyan", "silent": "bold yellow"}
MOST_CLIENTS = 20
"""Clients of a round that are listed."""


def show_run(now: RunNow) -> RenderableType:
    """All that there is to say of a run."""
    parts: list[RenderableType] = [
        Text.assemble(
            (now.name, "bold"),
            "  ",
            (now.phase, STYLES[now.phase]),
            f"  round {now.round} of {now.num_rounds}",
        ),
        Text(now.pace),
        Text(_facts(now), "dim"),
    ]
    shown = views.clients(now)
    if len(shown.rows) > MOST_CLIENTS:
        note = f"{shown.note} The first {MOST_CLIENTS} are shown."
        rows = shown.rows[:MOST_CLIENTS]
        shown = Table(shown.title, shown.columns, rows, shown.num_words, note)
    for table in (views.scores(now), shown, views.quarantine(now)):
        parts += _table(table)
    if now.advice:
        parts += [Text(), Text(now.advice, "yellow")]
    return Group(*parts)


def show_place(place: PlaceNow) -> RenderableType:
    """A line a run."""
    head = Text.assemble((place.title, "bold"), f"  {place.pace}")
    return Group(head, *_table(views.runs(place)))


def one_line(now: RunNow) -> str:
    """A run in one line, for a log."""
    scores = ", ".join(
        f"{row[0]} {_newest(row)}" for row in views.scores(now).rows if _newest(row) != "\u2013"
    )
    return f"{now.run}: round {now.num_finished}/{now.num_rounds}, {now.pace}; {scores}"


def _newest(row: list[str]) -> str:
    return next((row[i] for i in (7, 4, 2) if i < len(row) and row[i] != "\u2013"), "\u2013")


def _facts(now: RunNow) -> str:
    down = sum(t.bytes_down for t in now.tiers)
    up = sum(t.bytes_up for t in now.tiers)
    words = [f"{now.strategy} on {now.model}, seed {now.seed}"]
    words.append(f"{bytes_text(down)} sent, {bytes_text(up)} sent back")
    if e := now.experts:
        words.append(f"of {e.num_experts} experts {e.starved} starved, {e.captured} captured")
    if now.num_replaced:
        words.append(f"{now.num_replaced} workers replaced")
    if now.virtual_clock is not None:
        words.append(f"virtual time {seconds_text(now.virtual_clock)}")
    return "; ".join(words)


def _least(table: Table, column: int) -> int:
    """The width below which a column of words is unreadable: rich shrinks it before numbers."""
    return min(24, max(len(row[column]) for row in table.rows))


def _table(table: Table) -> list[RenderableType]:
    if not table.rows:
        return []
    drawn = RichTable(box=None, pad_edge=False, header_style="dim")
    for i, name in enumerate(table.columns):
        word = i < table.num_words
        drawn.add_column(
            name,
            justify="left" if word else "right",
            no_wrap=not word,
            overflow="fold" if word else "ellipsis",
            min_width=_least(table, i) if word else None,
        )
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return [Text(), Text(table.title, "bold"), drawn, Text(table.note, "dim")]
