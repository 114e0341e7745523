"""The tables of a whole comparison: variants, search, shared settings, runs, versions."""

from __future__ import annotations

from collections.abc import Sequence

from fedmoe.comparison.bracket import brackets
from fedmoe.comparison.result import MEAN, Result
from fedmoe.comparison.study import Study
from fedmoe.report.text_table import TextTable, pairs_table
from fedmoe.report.units import DASH, number_text, percent_text, seconds_text
from fedmoe.runs.own_data import AT_CLIENTS

OWN = ("name", "seed", "simulation.folder")
"""Settings in which the runs of one variant differ."""
NOT_COMPARED = ("started",)
UNKNOWN = "not known to be the same"


def facts(study: Study) -> list[tuple[str, str]]:
    """Return the size and the state of a comparison as names and values."""
    results = study.results
    if not results:
        return []
    if (pairs := study.cases[0].pairs) != "seeds":
        return [("Reference", study.reference), *_of_runs(results, pairs == "examples")]
    splits: dict[tuple[str, int], set[str]] = {}
    for case in study.cases:
        for r in case.results:
            if r.variant not in case.baselines:  # one of which pools all data
                splits.setdefault((r.case, r.seed), set()).add(r.data_sha256)
    same = all(len(found) == 1 for found in splits.values())
    # Of clients that hold their own rows, no process has a hash.
    apart = any(r.environment.get("identity.data") == AT_CLIENTS for r in results)
    proof = "their counts of rows" if apart else "hash"
    known = [
        ("Variants", str(len({r.variant for r in results}))),
        ("Reference", study.reference),
        ("Seeds", ", ".join(map(str, sorted({r.seed for r in results})))),
        ("Cases", str(len(study.cases)) if len(study.cases) > 1 else ""),
        ("Runs", f"{len(results)} of {study.num_planned}"),
        ("Time of all runs", seconds_text(sum(r.seconds for r in results))),
        ("Clients' data alike per seed", (f"yes, by {proof}" if same else "no")),
    ]
    return [(name, value) for name, value in known if value]


def _of_runs(results: Sequence[Result], paired: bool) -> list[tuple[str, str]]:
    """Return whether runs were tested on the same examples, and started from the same model."""
    known = all(r.of_examples.sha256 for r in results)
    tested = "the same, by hash" if paired else "different ones" if known else UNKNOWN
    facts = [("Seeds", ", ".join(str(r.seed) for r in results)), ("Test examples", tested)]
    for name, what in (("model", "Base model"), ("data", "Training data")):
        found = {r.environment.get(f"identity.{name}", "") for r in results}
        same = "different" if len(found) > 1 else "the same, by hash"
        facts.append((what, UNKNOWN if "" in found else same))
    return facts


def variants(study: Study) -> TextTable:
    """Return a row per variant: its strategy and its settings."""
    chosen = {t.variant: " ".join(t.settings) for t in study.trials if t.chosen}
    table = TextTable.of(
        "What is compared",
        study.variants.items(),
        ("", lambda item: item[0]),
        ("aggregation", lambda item: item[1].about or DASH),
        ("settings", lambda item: " ".join(item[1].overrides) or DASH),
        ("searched", lambda item: chosen.get(item[0], DASH)),
        num_words=4,
    )
    return table if chosen else table.without("searched")


INSIDE = {True: "yes", False: "no: at the edge", None: "a choice"}


def search(study: Study) -> TextTable:
    """Return a row per variant and searched setting: its grid, the best value, its bracket."""
    return TextTable.of(
        "Search for hyper-parameters",
        brackets(study.trials),
        ("", lambda b: b.variant),
        ("setting", lambda b: b.setting),
        ("values tried", lambda b: ", ".join(map(str, b.tried))),
        ("best", lambda b: str(b.best)),
        ("bracketed", lambda b: INSIDE[b.inside]),
        ("points", lambda b: str(b.points)),
        num_words=5,
        note=f"{study.search} Bracketed: the best value lies between others that were tried.",
    )


def trials(study: Study) -> TextTable:
    """Return a row per point of the search."""
    return TextTable.of(
        "Points of the search",
        study.trials,
        ("", lambda t: t.variant),
        ("settings", lambda t: " ".join(t.settings)),
        ("validation score", lambda t: percent_text(t.score)),
        ("loss", lambda t: number_text(t.loss)),
        ("", lambda t: "chosen" if t.chosen else ""),
        num_words=2,
    )


def settings(study: Study) -> TextTable:
    """Return the settings that all runs share, with which they can be repeated."""
    first, *others = [r.settings for r in study.results] or [{}]
    common = [
        (name, value)
        for name, value in first.items()
        if name not in OWN and all(other.get(name) == value for other in others)
    ]
    return pairs_table("Settings of all runs", ("setting", "value"), common)


def differing(study: Study) -> TextTable:
    """Return the settings in which single runs differ, a column per run."""
    names = dict.fromkeys(name for r in study.results for name in r.settings if name not in OWN)
    rows = [[name, *(r.settings.get(name, DASH) for r in study.results)] for name in names]
    return TextTable(
        "Settings that differ",
        ["setting", *(r.variant for r in study.results)],
        [row for row in rows if len({*row[1:]}) > 1],
        num_words=1 + len(study.results),
    )


def versions(study: Study) -> TextTable:
    """Return the environments of the runs; where they differ, all values of a part."""
    environments = [r.environment for r in study.results]
    names = dict.fromkeys(name for e in environments for name in e if name not in NOT_COMPARED)
    pairs = [
        (name, ", ".join(sorted({e.get(name, DASH) for e in environments})))
        for name in names
        if name
    ]
    return pairs_table("Environment", ("part", "version"), pairs)


def runs(study: Study) -> TextTable:
    """Return a row per run, with the hashes that tell whether a repetition is identical."""
    table = TextTable.of(
        "Runs",
        study.results,
        ("", lambda r: r.variant),
        ("case", lambda r: r.case or DASH),
        ("seed", lambda r: str(r.seed)),
        ("loss", lambda r: number_text(r.losses[MEAN])),
        ("score", lambda r: DASH if r.metric == "loss" else percent_text(r.scores[MEAN])),
        ("time", lambda r: seconds_text(r.seconds)),
        ("data", lambda r: r.data_sha256[:8] or DASH),
        ("adapter SHA-256", lambda r: r.adapter_sha256[:16] or DASH),
        num_words=2,
    )
    return table.without_empty("case")
