"""The report as one HTML page that needs no network, no script and no second file."""

import base64
from collections.abc import Sequence
from html import escape

from fedmoe.report import tables
from fedmoe.report.headline import headline, status
from fedmoe.report.page_style import STYLE
from fedmoe.report.plots import Picture
from fedmoe.report.run import Run
from fedmoe.report.tables import Table
from fedmoe.report.units import DASH, count_text, percent_text, seconds_text


def render_page(run: Run, pictures: Sequence[Picture]) -> str:
    """Return the page; every text that comes from the run is escaped."""
    name = escape(run.header["name"])
    settings = tables.pairs("Settings", ["setting", "value"], run.settings.items())
    versions = tables.pairs("Environment", ["part", "version"], run.environment.items())
    body = [
        _header(run),
        _section(tables.test_scores(run)),
        _plots(pictures),
        _section(tables.tier_costs(run)),
        _section(tables.clients(run)),
        _section(tables.failures(run)),
        _section(tables.phases(run)),
        _folded(tables.schedule(run)),
        _folded(tables.label_scores(run)),
        _folded(settings),
        _folded(versions),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name} - fedmoe</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def facts(run: Run) -> list[tuple[str, str]]:
    """What one asks first about a run, as names and values."""
    head, end = run.header, run.end or {}
    seconds = end.get("seconds", sum(r["seconds"] for r in run.rounds) or None)
    known = [
        ("Model", head["model"]),
        ("Clients", f"{head['num_clients']}, {head['clients_per_round']} per round"),
        ("Rounds", f"{run.num_finished} of {head['num_rounds']}"),
        ("Aggregation", head["strategy"]),
        ("Rescaling", head["rescaling"]),
        ("Seed", str(head["seed"])),
        ("Trained tokens", count_text(sum(c["tokens"] for c in run.ok()))),
        ("Wall time" if run.end else "Time in rounds", seconds_text(seconds)),
        ("Spent in training", percent_text(end.get("training_share"))),
        ("Over the ideal schedule", tables.gap_text(run.rounds)),
        ("Workers replaced", count_text(run.num_replaced or None)),
        ("Adapter SHA-256", end.get("adapter_sha256", DASH)[:16]),
    ]
    return [(name, value) for name, value in known if value != DASH]


def _header(run: Run) -> str:
    kind = "status" if run.complete else "status interrupted"
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts(run)
    )
    return (
        f"<header>\n<h1>{escape(run.header['name'])}</h1>\n"
        f'<div class="{kind}">{escape(status(run).capitalize())}</div>\n'
        f'<p class="headline">{escape(headline(run))}</p>\n<dl>{items}</dl>\n</header>'
    )


def _plots(pictures: Sequence[Picture]) -> str:
    figures = [
        f'<figure><img src="data:image/png;base64,{base64.b64encode(p.png).decode()}" '
        f'alt="{escape(p.caption)}"><figcaption>{escape(p.caption)}</figcaption></figure>'
        for p in pictures
    ]
    inner = "\n".join(figures)
    return f'<section>\n<h2>Plots</h2>\n<div class="plots">\n{inner}\n</div>\n</section>'


def _section(table: Table) -> str:
    if not table.rows:
        return ""
    return f"<section>\n<h2>{escape(table.title)}</h2>\n{_table(table)}{_note(table)}\n</section>"


def _folded(table: Table) -> str:
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
