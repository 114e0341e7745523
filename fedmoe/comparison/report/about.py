"""What was compared: variants, the search for their settings, shared settings, runs, versions."""

from __future__ import annotations

from fedmoe.comparison.report.result import MEAN
from fedmoe.comparison.report.study import Study
from fedmoe.report import tables
from fedmoe.report.tables import Table
from fedmoe.report.units import DASH, number_text, percent_text, seconds_text

OWN = ("name", "seed", "simulation.folder")
"""Settings in which the runs of one variant differ."""
NOT_COMPARED = ("started",)


def facts(study: Study) -> list[tuple[str, str]]:
    """What one asks first, as names and values."""
    results = study.results
    if not results:
        return []
    seeds = sorted({r.seed for r in results})
    splits: dict[tuple[str, int], set[str]] = {}
    for case in study.cases:
        for r in case.results:
            if r.variant not in case.baselines:  # one of which pools all data
                splits.setdefault((r.case, r.seed), set()).add(r.data_sha256)
    same = all(len(found) == 1 for found in splits.values())
    known = [
        ("Variants", str(len({r.variant for r in results}))),
        ("Reference", study.reference),
        ("Seeds", ", ".join(map(str, seeds))),
        ("Cases", str(len(study.cases)) if len(study.cases) > 1 else ""),
        ("Runs", f"{len(results)} of {study.num_planned}"),
        ("Time of all runs", seconds_text(sum(r.seconds for r in results))),
        ("Clients' data alike per seed", "yes, by hash" if same else "no"),
    ]
    return [(name, value) for name, value in known if value]


def variants(study: Study) -> Table:
    """A row a variant: what it is, and its settings."""
    chosen = {t.variant: " ".join(t.settings) for t in study.trials if t.chosen}
    rows = [
        [name, v.about or DASH, " ".join(v.overrides) or DASH, chosen.get(name, DASH)]
        for name, v in study.variants.items()
    ]
    table = Table("What is compared", ["", "aggregation", "settings", "searched"], rows, 4)
    return table if chosen else tables.without(table, "searched")


def search(study: Study) -> Table:
    """A row a point that was tried: every variant has the same."""
    rows = [
        [
            t.variant,
            " ".join(t.settings),
            percent_text(t.score),
            number_text(t.loss),
            "chosen" if t.chosen else "",
        ]
        for t in study.trials
    ]
    columns = ["", "settings", "validation score", "loss", ""]
    return Table("Search for hyper-parameters", columns, rows, num_words=2, note=study.search)


def settings(study: Study) -> Table:
    """The settings that all runs share, to do them again."""
    common = _common([r.settings for r in study.results])
    pairs = {name: value for name, value in common.items() if name not in OWN}
    return tables.pairs("Settings of all runs", ["setting", "value"], pairs.items())


def versions(study: Study) -> Table:
    """What the runs ran on; where runs differ, how many values there are."""
    environments = [r.environment for r in study.results]
    names = dict.fromkeys(
        name for e in environments for name in e if name and name not in NOT_COMPARED
    )
    pairs = []
    for name in names:
        found = sorted({e.get(name, DASH) for e in environments})
        pairs.append((name, ", ".join(found)))
    return tables.pairs("Environment", ["part", "version"], pairs)


def runs(study: Study) -> Table:
    """A row a run, with the hashes that tell whether it was done again exactly."""
    rows = [
        [
            r.variant,
            r.case or DASH,
            str(r.seed),
            percent_text(r.scores[MEAN]),
            seconds_text(r.seconds),
            r.data_sha256[:8] or DASH,
            r.adapter_sha256[:16] or DASH,
        ]
        for r in study.results
    ]
    columns = ["", "case", "seed", MEAN, "time", "data", "adapter SHA-256"]
    table = Table("Runs", columns, rows, num_words=2)
    return table if any(r.case for r in study.results) else tables.without(table, "case")


def _common(trees: list[dict[str, str]]) -> dict[str, str]:
    first, *others = trees or [{}]
    return {k: v for k, v in first.items() if all(o.get(k) == v for o in others)}
