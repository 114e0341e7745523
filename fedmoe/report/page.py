"""The report of a run as HTML and in short as Markdown; pages from templates for all reports."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from fedmoe.report import run_tables
from fedmoe.report.clients import MOST_ROWS, client_rows, client_scores
from fedmoe.report.facts import details, facts, headline, next_steps, status
from fedmoe.report.own_metrics import own_metrics
from fedmoe.report.privacy import private_rounds
from fedmoe.report.robust import robust_rule
from fedmoe.report.run import Run
from fedmoe.report.text_table import Strong, TextTable, markdown_sections, pairs_table, plain

if TYPE_CHECKING:
    from fedmoe.report.plots import Picture

MOST_SUMMARY_ROWS = 40
"""Clients in a table of the summary."""


def render(package: str, template: str, **values: Any) -> str:
    """Return a template of a package, filled in; every value is escaped.

    Args:
        package: an importable package with a folder `templates`; those of `fedmoe.report` (the
            page, its style, tables and plots) can be used by all.
        values: by their names in the template; one that is missing is an error.
    """
    return _templates(package).get_template(template).render(**values)


@cache
def _templates(package: str) -> Environment:
    shared = "fedmoe.report"
    loader = ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, shared))])
    made = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.tests["strong"] = lambda cell: isinstance(cell, Strong)
    return made


def render_page(run: Run, pictures: Sequence[Picture]) -> str:
    """Return the report of a run as one page, with its plots inside."""
    settings = pairs_table("Settings", ("setting", "value"), run.settings.items())
    versions = pairs_table("Environment", ("part", "version"), run.environment.items())
    of_clients = [t.shortened(MOST_ROWS) for t in (client_scores(run), run_tables.clients(run))]
    folded = [
        run_tables.phases(run),
        run_tables.schedule(run),
        run_tables.label_scores(run),
        details(run),
        settings,
        versions,
    ]
    return render(
        "fedmoe.report",
        "report.html",
        title=run.header["name"],
        status=status(run).capitalize(),
        complete=run.complete,
        headline=headline(run),
        facts=facts(run),
        steps=next_steps(run),
        scores=run_tables.test_scores(run),
        pictures=pictures,
        shown=[*_overview(run), *of_clients, client_rows(run), robust_rule(run)],
        folded=folded,
    )


def render_summary(run: Run) -> str:
    """Return the report in short, as Markdown for a terminal, an issue or a README."""
    scores = client_scores(run).shortened(MOST_SUMMARY_ROWS)
    tables = [run_tables.test_scores(run), scores, *_overview(run)]
    lines = [f"# {plain(run.header['name'])}", "", f"**{plain(headline(run))}**", ""]
    lines += [f"Status: {status(run)}.", ""]
    lines += [f"- {name}: {plain(value)}" for name, value in facts(run)] + [""]
    lines += [f"- {name}: `{command}`" for name, command in next_steps(run)]
    lines += [""] * bool(next_steps(run))
    return "\n".join(lines + markdown_sections(tables, notes=False))


def _overview(run: Run) -> list[TextTable]:
    """Return the tables of a screenful that follow the scores."""
    return [
        private_rounds(run),
        run_tables.tier_costs(run),
        run_tables.tier_shares(run),
        run_tables.memory_options(run),
        own_metrics(run),
        run_tables.faults(run),
        run_tables.failures(run),
    ]
