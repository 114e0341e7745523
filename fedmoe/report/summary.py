"""The report in short, as Markdown for a terminal, an issue or a README."""

from fedmoe.report import tables
from fedmoe.report.headline import headline, status
from fedmoe.report.memory_options import memory_options_table
from fedmoe.report.own_metrics import own_metrics
from fedmoe.report.page import facts
from fedmoe.report.run import Run
from fedmoe.report.tables import Table


def render_summary(run: Run) -> str:
    """Return the headline, the facts and the tables that fit on a screen."""
    lines = [f"# {plain(run.header['name'])}", "", f"**{plain(headline(run))}**", ""]
    lines += [f"Status: {status(run)}.", ""]
    lines += [f"- {name}: {plain(value)}" for name, value in facts(run)] + [""]
    for table in (
        tables.test_scores(run),
        tables.tier_costs(run),
        memory_options_table(run),
        own_metrics(run),
        tables.faults(run),
        tables.failures(run),
        tables.phases(run),
    ):
        if table.rows:
            lines += [f"## {table.title}", "", *markdown_table(table), ""]
    return "\n".join(lines)


def markdown_table(table: Table) -> list[str]:
    """The lines of a table in Markdown."""
    rules = [":--" if i < table.num_words else "--:" for i in range(len(table.columns))]
    rows = [table.columns, rules, *([plain(cell) for cell in row] for row in table.rows)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def plain(text: str) -> str:
    """Text that cannot end its cell or line, nor become HTML."""
    flat = " ".join(text.split())
    return flat.replace("|", r"\|").replace("<", "&lt;")
