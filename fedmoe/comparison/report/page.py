"""The comparison as one HTML page that needs no network, no script and no second file."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from html import escape

from fedmoe.comparison.report import about, tables
from fedmoe.comparison.report.paired import difference
from fedmoe.comparison.report.plots import draw_case
from fedmoe.comparison.report.result import MEAN
from fedmoe.comparison.report.study import Case, Study, verdicts
from fedmoe.report.page_parts import document, folded, plots, section
from fedmoe.report.plots import Picture

STYLE = """
h2.case { font-size: 1.3rem; margin-top: 3rem; border-top: 2px solid var(--ink);
  padding-top: .8rem; overflow-wrap: anywhere; }
tbody th { white-space: normal; min-width: 7rem; max-width: 14rem; overflow-wrap: break-word; }
td.word { white-space: normal; min-width: 12rem; }
@media (max-width: 40rem) {
  tbody th, thead th:first-child { position: sticky; left: 0; background: var(--paper);
    min-width: 7rem; max-width: 8rem; }
  details tbody th, details thead th:first-child { background: var(--panel); }
  thead th { min-width: 4.5rem; }
}
@media print {
  td { white-space: normal; min-width: 5.2em; }
  details:not([open]) { display: none; }
}
"""


def render_page(study: Study, pictures: dict[str, list[Picture]] | None = None) -> str:
    """Return the page; `pictures` by case are drawn here unless given."""
    drawn = pictures or {case.name: draw_case(case) for case in study.cases}
    body = [_header(study)]
    for case in study.cases:
        body += _case(case, drawn[case.name], num_cases=len(study.cases))
    body += [
        section(about.variants(study)),
        section(about.search(study)),
        folded(about.settings(study)),
        folded(about.runs(study)),
        folded(about.versions(study)),
    ]
    return document(study.name, body, STYLE)


def headline(case: Case) -> str:
    """The best variant of a case in one sentence, and whether chance may explain it.

    Baselines do not compete. It was picked among all: what is said of chance takes the interval
    that holds for all of them.
    """
    against = {name: found for name, found in verdicts(case).items() if name not in case.baselines}
    ahead = {name: found.by_tier[MEAN].mean for name, found in against.items()}
    means = {
        name: statistics.mean(r.scores[MEAN] for r in runs)
        for name, runs in case.variants.items()
        if name not in case.baselines
    }
    if not means:
        return "Baselines alone: nothing is compared."
    best = max(ahead, key=lambda name: ahead[name], default=case.reference)
    if best not in against or (ahead[best] < 0 and case.reference in means):
        best = case.reference if case.reference in means else max(means, key=lambda n: means[n])
        itself = ", the reference itself." if best == case.reference else "."
        return f"Best mean of tiers: {best}, {tables.points(means[best])} %{itself}"
    found, pairs = against[best].by_tier[MEAN], case.paired(best)
    text = (
        f"Best mean of tiers: {best}, {tables.points(means[best])} %; "
        f"{tables.difference_text(found)} points to {case.reference}"
    )
    if found.low is None:
        return text + " on one seed, which shows no spread."
    wide = difference(
        [a.scores[MEAN] for a, _ in pairs], [b.scores[MEAN] for _, b in pairs], len(against)
    )
    sure = wide.low is not None and wide.low > 0
    many = f"as the best of {len(against)}" if len(against) > 1 else "by its interval"
    return text + (
        f", which chance does not explain, {many}." if sure else f", which may be chance {many}."
    )


def _header(study: Study) -> str:
    done = len(study.results)
    complete = done == study.num_planned
    kind = "status" if complete else "status interrupted"
    status = "Finished" if complete else f"{done} of {study.num_planned} runs are finished"
    lines = [
        f'<p class="headline">{escape(f"{case.name}: " if case.name else "")}'
        f"{escape(headline(case))}</p>"
        for case in study.cases
    ]
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in about.facts(study)
    )
    return (
        f'<header>\n<h1>{escape(study.name)}</h1>\n<div class="{kind}">{status}</div>\n'
        + "\n".join(lines)
        + f"\n<dl>{items}</dl>\n</header>"
    )


def _case(case: Case, pictures: list[Picture], num_cases: int) -> Iterable[str]:
    if num_cases > 1 or case.name:
        yield f'<h2 class="case">{escape(case.name)}</h2>'
        if case.overrides:
            yield f'<p class="note">{escape(" ".join(case.overrides))}</p>'
    yield section(tables.scores(case))
    yield plots(pictures)
    for table in (tables.differences, tables.clients, tables.costs, tables.reach, tables.experts):
        yield section(table(case))
