"""The files of a comparison: Markdown, CSV and JSON on the way, the page and its plots."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedmoe.comparison.report.experts import starved_and_captured
from fedmoe.comparison.report.markdown import render_markdown
from fedmoe.comparison.report.page import render_page
from fedmoe.comparison.report.plots import draw_case
from fedmoe.comparison.report.result import Result
from fedmoe.comparison.report.study import Study, fairness, verdicts
from fedmoe.system.files import write_bytes, write_json, write_text


def write_numbers(study: Study, folder: Path) -> None:
    """Write `comparison.md`, `.csv` and `.json`: quick, for after every run."""
    write_text(folder / "comparison.md", render_markdown(study))
    write_json(folder / "comparison.json", as_json(study))
    write_text(folder / "comparison.csv", as_csv(study))


def write_pages(study: Study, folder: Path) -> None:
    """Write `comparison.html`, and `plots/*.png` of every case."""
    pictures = {case.name: draw_case(case) for case in study.cases}
    for number, case in enumerate(study.cases):
        plots = folder / "plots" / (f"{number}-{slug(case.name)}" if case.name else "")
        plots.mkdir(parents=True, exist_ok=True)
        for picture in pictures[case.name]:
            write_bytes(plots / f"{picture.name}.png", picture.png)
    write_text(folder / "comparison.html", render_page(study, pictures))


def as_csv(study: Study) -> str:
    """A row a run: scores, fairness and costs, in plain units."""
    tiers = dict.fromkeys(tier for r in study.results for tier in r.scores)
    costs = [*asdict(study.results[0].spent)] if study.results else []
    even = ["mean_client", "worst_client", "worst_tenth", "jain_index"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "variant", "seed", *tiers, *even, *costs, "seconds", "adapter_sha256"])
    for r in study.results:
        found = fairness(r)
        fair = [found.mean, found.worst, found.worst_tenth, found.jain] if found else [None] * 4
        scores = [r.scores.get(tier) for tier in tiers]
        spent = [*asdict(r.spent).values()]
        row = [r.case, r.variant, r.seed, *scores, *fair, *spent, r.seconds, r.adapter_sha256]
        writer.writerow(row)
    return text.getvalue()


def as_json(study: Study) -> dict[str, Any]:
    """Everything the report shows, as numbers."""
    return {
        "name": study.name,
        "reference": study.reference,
        "num_planned": study.num_planned,
        "variants": {name: asdict(variant) for name, variant in study.variants.items()},
        "search": {"about": study.search, "trials": [asdict(t) for t in study.trials]},
        "cases": [
            {
                "name": case.name,
                "overrides": case.overrides,
                "target": case.score_to_reach,
                "differences": {v: asdict(found) for v, found in verdicts(case).items()},
                "runs": [_run(result) for result in case.results],
            }
            for case in study.cases
        ],
    }


def slug(name: str) -> str:
    """A name as part of a path."""
    return "".join(c if c.isalnum() else "-" for c in name)


def _run(r: Result) -> dict[str, Any]:
    found, experts = fairness(r), starved_and_captured(r)
    return {
        "variant": r.variant,
        "seed": r.seed,
        "scores": r.scores,
        "clients": r.clients,
        "fairness": asdict(found) if found else None,
        "spent": asdict(r.spent),
        "bytes_up": r.bytes_up,
        "client_seconds": r.client_seconds,
        "seconds": r.seconds,
        "validation": [asdict(point) for point in r.points],
        "starved_share": experts[0].tolist() if experts else None,
        "captured_share": experts[1].tolist() if experts else None,
        "adapter_sha256": r.adapter_sha256,
        "data_sha256": r.data_sha256,
        "settings": r.settings,
        "environment": r.environment,
    }
