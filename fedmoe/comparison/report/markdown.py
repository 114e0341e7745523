"""The comparison in short, as Markdown for a terminal, an issue or a README."""

from __future__ import annotations

from fedmoe.comparison.report import about, tables
from fedmoe.comparison.report.study import Study
from fedmoe.report.summary import markdown_table, plain


def render_markdown(study: Study, *, short: bool = False) -> str:
    """Return every case's tables; `short` is the scores alone."""
    lines: list[str] = []
    for case in study.cases:
        if case.name:
            lines += [f"# {plain(case.name)}", ""]
        shown = [tables.scores(case)]
        if not short:
            shown += [tables.differences(case), tables.clients(case), tables.costs(case)]
            shown += [tables.reach(case), tables.experts(case)]
        for table in shown:
            if table.rows:
                lines += [f"## {plain(table.title)}", ""] if not short else []
                lines += [*markdown_table(table), ""]
                lines += [plain(table.note), ""] if not short else []
    for table in (
        [] if short else [about.variants(study), about.search(study), about.versions(study)]
    ):
        if table.rows:
            lines += [f"## {plain(table.title)}", "", *markdown_table(table), ""]
            lines += [plain(table.note), ""] if table.note else []
    return "\n".join(lines).rstrip() + "\n"
