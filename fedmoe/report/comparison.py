"""Variants of one experiment over the same seeds: means, spreads, paired differences."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure
from scipy import stats

from fedmoe.report.atomic import write_bytes, write_json, write_text
from fedmoe.report.figures import png
from fedmoe.report.ledger import read_ledger
from fedmoe.report.units import bytes_text, percent_text

CONFIDENCE = 0.95
MEAN = "mean of tiers"


@dataclass(frozen=True)
class Result:
    """One finished run of one variant."""

    variant: str
    seed: int
    scores: dict[str, float]
    """Test score after the last round, by tier, and their mean."""
    bytes_up: float
    """Mean bytes of a client's answer."""
    seconds: float
    """Mean wall seconds of a client's round."""
    adapter_sha256: str


@dataclass(frozen=True)
class Difference:
    """Variant minus reference over the same seeds, with the paired t-interval."""

    mean: float
    low: float | None
    high: float | None
    """None where there are fewer than two seeds."""


def read_result(variant: str, seed: int, folder: Path) -> Result | None:
    """The result of a run's folder; None when the run did not end."""
    lines = read_ledger(folder / "ledger.jsonl")
    if not lines or lines[-1]["kind"] != "end":
        return None
    tests = [x for x in lines if x["kind"] == "evaluation" and x["split"] == "test"]
    last = max(x["round"] for x in tests)
    scores = {x["tier"]: float(x["score"]) for x in tests if x["round"] == last}
    clients = [x for x in lines if x["kind"] == "client" and x["status"] == "ok"]
    return Result(
        variant, seed, scores | {MEAN: statistics.mean(scores.values())},
        statistics.mean(x["bytes_up"] for x in clients),
        statistics.mean(x["seconds"] for x in clients), lines[-1]["adapter_sha256"],
    )  # fmt: skip


def difference(ours: Sequence[float], reference: Sequence[float]) -> Difference:
    """The mean of `ours[i] - reference[i]`, one pair a seed, and its 95 % t-interval."""
    pairs = [a - b for a, b in zip(ours, reference, strict=True)]
    mean = statistics.mean(pairs)
    if len(pairs) < 2:
        return Difference(mean, None, None)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1) * stats.sem(pairs)
    return Difference(mean, mean - float(reach), mean + float(reach))


def markdown(results: Sequence[Result], reference: str) -> str:
    """A row a variant: mean ± standard deviation per tier, difference to the reference, cost.

    All results have the same tiers.
    """
    tiers = list(results[0].scores)
    head = [*tiers, f"difference to {reference} [95 %]", "up per round", "s per client-round"]
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "--:|" * len(head)]
    for variant, runs in _by_variant(results).items():
        cells = [_spread([r.scores[tier] for r in runs]) for tier in tiers]
        paired = _difference_text(results, variant, reference)
        cells += [paired, bytes_text(statistics.mean(r.bytes_up for r in runs))]
        cells.append(f"{statistics.mean(r.seconds for r in runs):.1f}")
        lines.append(f"| {variant.replace('|', '/')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_comparison(results: Sequence[Result], reference: str, folder: Path) -> None:
    """`comparison.md`, `.csv`, `.json` and `.png` in `folder`."""
    write_text(folder / "comparison.md", markdown(results, reference))
    write_json(folder / "comparison.json", [asdict(r) for r in results])
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["variant", "seed", *results[0].scores, "bytes_up", "seconds"])
    writer.writerows(
        [r.variant, r.seed, *r.scores.values(), r.bytes_up, r.seconds] for r in results
    )
    write_text(folder / "comparison.csv", text.getvalue())
    write_bytes(folder / "comparison.png", png(_plot(results)))


def _by_variant(results: Sequence[Result]) -> dict[str, list[Result]]:
    names = dict.fromkeys(r.variant for r in results)
    return {name: [r for r in results if r.variant == name] for name in names}


def _difference_text(results: Sequence[Result], variant: str, reference: str) -> str:
    """On the seeds that both have."""
    if variant == reference:
        return "reference"
    runs = {v: {r.seed: r.scores[MEAN] for r in rs} for v, rs in _by_variant(results).items()}
    seeds = sorted(runs[variant].keys() & runs.get(reference, {}).keys())
    if not seeds:
        return percent_text(None)
    found = difference([runs[variant][s] for s in seeds], [runs[reference][s] for s in seeds])
    text = percent_text(found.mean, signed=True)
    if found.low is None:
        return text
    low, high = (percent_text(x, signed=True) for x in (found.low, found.high))
    return f"{text} [{low}, {high}]"


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{100 * values[0]:.1f}"
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def _plot(results: Sequence[Result]) -> Figure:
    """A panel a tier: every seed as a dot, the mean as a bar."""
    variants, tiers = _by_variant(results), list(results[0].scores)
    figure = Figure(figsize=(2.1 * len(tiers) + 2.4, 0.42 * len(variants) + 1.3))
    panels = figure.subplots(1, len(tiers), sharey=True, sharex=True, squeeze=False)[0]
    for panel, tier in zip(panels, tiers, strict=True):
        for y, runs in enumerate(variants.values()):
            scores = [100 * r.scores[tier] for r in runs]
            panel.barh(y, statistics.mean(scores), color="#9ecae1", height=0.6)
            panel.plot(scores, [y] * len(scores), "o", color="#08519c", markersize=4)
        panel.set_title(tier, fontsize=10)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(variants)), list(variants))
    panels[0].invert_yaxis()
    figure.supxlabel("test score (%); a dot is a seed", fontsize=9)
    figure.tight_layout()
    return figure
