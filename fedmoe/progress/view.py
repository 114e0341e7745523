"""A view that is redrawn twice a second on a terminal, with plain lines above or instead of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedmoe.report.text_table import Strong, TextTable


class LiveView(ABC):
    """Shows a changing state on a console while it is open as a context.

    rich draws on a separate thread, so a state never changes: `_now` replaces it by another one.
    """

    def __init__(self, console: Console, *, drawn: bool) -> None:
        """Draw on `console` if it is a terminal and `drawn` is set; else `live` is None.

        The state must exist before: rich asks for the first view at once.
        """
        self.console = console
        drawing = drawn and console.is_terminal
        self.live = (
            Live(console=console, get_renderable=self._render, refresh_per_second=2)
            if drawing
            else None
        )

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.live:
            self._now(phase="interrupted" if kind else "finished")
            self.live.stop()

    @abstractmethod
    def _now(self, **changes: Any) -> Any:
        """Replace fields of the state, `phase` among them, and return it."""

    @abstractmethod
    def _render(self) -> RenderableType:
        """Return the view of the present state."""

    def _line(self, text: str) -> None:
        print_line(self.console, text)


def print_line(console: Console, text: str) -> None:
    """Print an event as one line: rich would wrap it at 80 columns and colour its numbers."""
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def fitted(table: TextTable, width: int, styles: Mapping[str, str] | None = None) -> list[Table]:
    """Return a table as what a terminal of `width` columns can show of it: all, in parts.

    Args:
        table: without its title and note.
        styles: by the text of a cell, without the spaces around it.
    """
    drawn = []
    for part in table.parts(width):
        one = Table(box=None, pad_edge=False, header_style="dim")
        for i, (name, least) in enumerate(zip(part.columns, part.least_widths(), strict=True)):
            if i < part.num_words:
                # rich shrinks words before numbers: below this width they are unreadable.
                one.add_column(name, overflow="fold", min_width=least)
            else:
                one.add_column(name, justify="right", no_wrap=True)
        for row in part.rows:
            bold = ("bold" if isinstance(cell, Strong) else "" for cell in row)
            looks = ((styles or {}).get(c.strip(), b) for c, b in zip(row, bold, strict=True))
            one.add_row(*map(Text, row, looks))
        drawn.append(one)
    return drawn


def titled(table: TextTable, width: int) -> list[RenderableType]:
    """Return a table as `fitted` does, with its title and note; nothing without rows."""
    if not table.rows:
        return []
    note = [Text(table.note, "dim")] if table.note else []
    first, *more = fitted(table, width)
    below = [line for part in more for line in (Text(), part)]
    return [Text(), Text(table.title, "bold"), first, *below, *note]
