"""Lines and tables for a terminal; rich is imported when something is printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from fedmoe.report.text_table import TextTable

WIDTH = 1000
"""Columns where stdout is a file or a pipe: a table is as wide as it needs to be."""


def terminal() -> Console:
    """Return stdout, as wide as the terminal is."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say what takes seconds, and on a terminal how many so far, for as long as it lasts."""
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    console = terminal()
    if not console.is_terminal:
        print(what, flush=True)
        yield
        return
    columns = TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        bar.add_task(what, total=None)
        yield


def say(console: Console, text: str) -> None:
    """Print one line, however long it is; `[bold]` and its like are styles."""
    console.print(text, soft_wrap=True, highlight=False)


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    num_words: int = 1,
    note: str = "",
) -> TextTable:
    """Return a table; its first `num_words` columns hold words, the others numbers.

    >>> table("squares", ["n", "squared"], [["2", "4"]]).rows
    [['2', '4']]
    """
    from fedmoe.report.text_table import TextTable

    return TextTable(title, [*columns], [[*row] for row in rows], num_words, note)


def print_table(console: Console, made: TextTable) -> None:
    """Print a table with its title and note, in parts where the terminal is too narrow."""
    from fedmoe.progress.view import titled

    for part in titled(made, console.width):
        console.print(part)
    if made.rows:
        console.print()
