"""Lines and tables for a terminal; rich is imported when something is printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def say(console: Console, text: str) -> None:
    """Print one line, however long it is; `[bold]` and its like are styles."""
    console.print(text, soft_wrap=True, highlight=False)


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], num_words: int = 1
) -> Table:
    """Return a table; its first `num_words` columns hold words, the others numbers.

    >>> table("squares", ["n", "squared"], [["2", "4"]]).row_count
    1
    """
    from rich.box import SIMPLE
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=SIMPLE, caption_justify="left")
    for number, name in enumerate(columns):
        made.add_column(name, justify="left" if number < num_words else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made
