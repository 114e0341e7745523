"""The report as one HTML page that needs no network, no script and no second file."""

from collections.abc import Sequence
from html import escape

from fedmoe.report import tables
from fedmoe.report.headline import headline, status
from fedmoe.report.memory_options import memory_options_table
from fedmoe.report.own_metrics import own_metrics
from fedmoe.report.page_parts import document, folded, plots, section
from fedmoe.report.plots import Picture
from fedmoe.report.run import Run
from fedmoe.report.units import DASH, count_text, percent_text, seconds_text


def render_page(run: Run, pictures: Sequence[Picture]) -> str:
    """Return the page; every text that comes from the run is escaped."""
    settings = tables.pairs("Settings", ["setting", "value"], run.settings.items())
    versions = tables.pairs("Environment", ["part", "version"], run.environment.items())
    body = [
        _header(run),
        section(tables.test_scores(run)),
        plots(pictures),
        section(tables.tier_costs(run)),
        section(memory_options_table(run)),
        section(tables.clients(run)),
        section(own_metrics(run)),
        section(tables.faults(run)),
        section(tables.failures(run)),
        section(tables.phases(run)),
        folded(tables.schedule(run)),
        folded(tables.label_scores(run)),
        folded(settings),
        folded(versions),
    ]
    return document(run.header["name"], body)


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
        ("Virtual time", seconds_text(max(run.virtual_clock.values(), default=None))),
        ("Spent in training", percent_text(end.get("training_share"))),
        ("Over the ideal schedule", tables.gap_text(run.rounds)),
        ("Workers replaced", count_text(run.num_replaced or None)),
        ("Interrupted and gone on", _times(run.num_resumed)),
        ("Adapter SHA-256", end.get("adapter_sha256", DASH)[:16]),
    ]
    return [(name, value) for name, value in known if value != DASH]


def _times(number: int) -> str:
    return DASH if not number else "once" if number == 1 else f"{number} times"


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
