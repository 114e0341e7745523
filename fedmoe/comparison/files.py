"""The files of a comparison: Markdown, CSV and JSON after every run, the page and its plots."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedmoe.comparison import outcomes, study_tables, tables, targets
from fedmoe.comparison.bracket import brackets
from fedmoe.comparison.config import slug
from fedmoe.comparison.fairness import fairness
from fedmoe.comparison.headline import headline, headlines
from fedmoe.comparison.plots import draw_case
from fedmoe.comparison.result import MEAN, Result
from fedmoe.comparison.study import Case, Measure, Study
from fedmoe.comparison.verdicts import verdicts
from fedmoe.report.page import render
from fedmoe.report.plots import Picture, write_pictures
from fedmoe.report.text_table import TextTable, markdown_sections, plain
from fedmoe.system.files import write_json, write_text


def write_numbers(study: Study, folder: Path) -> None:
    """Write `comparison.md`, `.csv` and `.json`, which is quick enough for after every run."""
    write_text(folder / "comparison.md", render_markdown(study))
    write_json(folder / "comparison.json", as_json(study))
    write_text(folder / "comparison.csv", as_csv(study))


def write_pages(study: Study, folder: Path) -> None:
    """Write `comparison.html`, and `plots/*.svg` of every case."""
    pictures = {case.name: draw_case(case) for case in study.cases}
    for number, case in enumerate(study.cases):
        plots = folder / "plots" / (f"{number}-{slug(case.name)}" if case.name else "")
        write_pictures(plots, pictures[case.name])
    write_text(folder / "comparison.html", render_page(study, pictures))


def render_page(study: Study, pictures: dict[str, list[Picture]]) -> str:
    """Return the comparison as one HTML page that needs no other file; `pictures` are by case."""
    done = len(study.results)
    complete = done == study.num_planned
    return render(
        "fedmoe.comparison",
        "comparison.html",
        title=study.name,
        status="Finished" if complete else f"{done} of {study.num_planned} runs are finished",
        complete=complete,
        headlines=headlines(study),
        facts=study_tables.facts(study),
        cases=[
            (case, outcomes.results(case), pictures[case.name], _more_tables(case))
            for case in study.cases
        ],
        shown=[
            study_tables.differing(study) if _of_runs(study) else study_tables.variants(study),
            study_tables.search(study),
        ],
        folded=[
            study_tables.trials(study),
            study_tables.settings(study),
            study_tables.runs(study),
            study_tables.versions(study),
        ],
    )


def render_markdown(study: Study, *, short: bool = False) -> str:
    """Return what is said and the tables as Markdown for a terminal, an issue or a README.

    `short`: the primary outcome alone.
    """
    lines = [line for said in headlines(study) for line in (plain(said), "")]
    for case in study.cases:
        if case.name:
            lines += [f"# {plain(case.name)}", ""]
        if short:
            said = outcomes.base(case)
            lines += [*outcomes.results(case).markdown(), "", *([said, ""] if said else [])]
        else:
            lines += markdown_sections([outcomes.results(case), *_more_tables(case)])
    if not short:
        first = study_tables.differing if _of_runs(study) else study_tables.variants
        all_runs = (first, study_tables.search, study_tables.versions)
        lines += markdown_sections([table(study) for table in all_runs])
    return "\n".join(lines).rstrip() + "\n"


def _of_runs(study: Study) -> bool:
    """Return whether single runs are compared, and not variants over seeds."""
    return any(case.pairs != "seeds" for case in study.cases)


def _more_tables(case: Case) -> list[TextTable]:
    """Return the tables below the primary outcome of a case."""
    costs = tables.costs(case)
    costs = replace(costs, note=f"{costs.note} {targets.missing(case)}".strip())
    shown = [outcomes.results, outcomes.differences]
    if len(case.columns) == 1:  # the difference beside its result is the only one
        shown = shown[:1]
    of_outcomes = [table(case, measure) for measure in case.measures for table in shown]
    return [
        *of_outcomes[1:],
        tables.clients(case),
        costs,
        targets.reach(case),
        tables.experts(case),
    ]


def as_csv(study: Study) -> str:
    """Return a row per run: scores, fairness and costs, in plain units."""
    tiers = dict.fromkeys(tier for r in study.results for tier in r.scores)
    costs = [*asdict(study.results[0].spent)] if study.results else []
    even = ["mean_client", "worst_client", "worst_tenth", "jain_index"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    losses = ["loss" if tier == MEAN else f"loss, {tier}" for tier in tiers]
    head = ["case", "variant", "seed", *tiers, *losses, *even, *costs, "seconds", "adapter_sha256"]
    writer.writerow(head)
    for r in study.results:
        found = fairness(r)
        fair = [*asdict(found).values()] if found else [None] * len(even)
        scores = [r.scores.get(tier) for tier in tiers]
        spent = [*asdict(r.spent).values()]
        row = [r.case, r.variant, r.seed, *scores, *map(r.losses.get, tiers), *fair, *spent]
        writer.writerow([*row, r.seconds, r.adapter_sha256])
    return text.getvalue()


def as_json(study: Study) -> dict[str, Any]:
    """Return everything the report shows, as numbers."""
    return {
        "name": study.name,
        "reference": study.reference,
        "num_planned": study.num_planned,
        "variants": {name: asdict(variant) for name, variant in study.variants.items()},
        "search": {
            "about": study.search,
            "trials": [asdict(t) for t in study.trials],
            "brackets": [asdict(b) | {"inside": b.inside} for b in brackets(study.trials)],
        },
        "cases": [
            {
                "name": case.name,
                "overrides": case.overrides,
                "measure": case.measure,
                "target": case.target,
                "target_loss": case.target_loss,
                "concluded": headline(case),
                "base_losses": case.base_losses,
                "differences": _differences(case, case.measure),
                "score_differences": _differences(case, "score") if case.scored else {},
                "runs": [_run(result) for result in case.results],
            }
            for case in study.cases
        ],
    }


def _differences(case: Case, measure: Measure) -> dict[str, Any]:
    return {variant: asdict(found) for variant, found in verdicts(case, measure).items()}


def _run(r: Result) -> dict[str, Any]:
    found, experts = fairness(r), r.extreme_experts
    same = (
        "variant",
        "seed",
        "scores",
        "losses",
        "clients",
        "bytes_up",
        "client_seconds",
        "seconds",
    )
    hashes = ("adapter_sha256", "data_sha256", "settings", "environment")
    return {
        **{name: getattr(r, name) for name in (*same, *hashes)},
        "fairness": asdict(found) if found else None,
        "spent": asdict(r.spent),
        "validation": [asdict(point) for point in r.points],
        "starved_share": experts[0].tolist() if experts else None,
        "captured_share": experts[1].tolist() if experts else None,
    }
