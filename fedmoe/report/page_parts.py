"""The pieces every report page is made of: tables, folded tables, pictures, the document."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from fedmoe.report.page_style import STYLE
from fedmoe.report.tables import Table

if TYPE_CHECKING:
    from fedmoe.report.plots import Picture


def document(title: str, body: Iterable[str], style: str = "") -> str:
    """Return a page that needs no network, no script and no second file; empty parts are left out.

    Args:
        title: any text, escaped here.
        body: HTML.
        style: rules after those that all reports share.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} - fedmoe</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def plots(pictures: Sequence[Picture], title: str = "Plots") -> str:
    """Pictures with their captions, as many beside each other as fit."""
    if not pictures:
        return ""
    figures = [
        f'<figure><img src="data:image/png;base64,{base64.b64encode(p.png).decode()}" '
        f'alt="{escape(p.caption)}"><figcaption>{escape(p.caption)}</figcaption></figure>'
        for p in pictures
    ]
    inner = "\n".join(figures)
    return f'<section>\n<h2>{escape(title)}</h2>\n<div class="plots">\n{inner}\n</div>\n</section>'


def section(table: Table) -> str:
    """A table under its title; nothing where it has no rows."""
    if not table.rows:
        return ""
    return f"<section>\n<h2>{escape(table.title)}</h2>\n{_table(table)}{_note(table)}\n</section>"


def folded(table: Table) -> str:
    """A table behind its title, to be opened; nothing where it has no rows."""
    if not table.rows:
        return ""
    title = escape(table.title)
    return f"<details>\n<summary>{title}</summary>\n{_table(table)}{_note(table)}\n</details>"


def _note(table: Table) -> str:
    return f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""


def _table(table: Table) -> str:
    def side(i: int) -> str:
        return ' class="word"' if i < table.num_words else ""

    head = "".join(
        f'<th scope="col"{side(i)}>{escape(name)}</th>' for i, name in enumerate(table.columns)
    )
    rows = "\n".join(
        f'<tr><th scope="row" class="word">{escape(row[0])}</th>'
        + "".join(f"<td{side(i)}>{escape(text)}</td>" for i, text in enumerate(row) if i)
        + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )
