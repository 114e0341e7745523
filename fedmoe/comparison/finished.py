"""Finished runs compared as they are: the same tables and plots, without a seed in common."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from rich.console import Console

from fedmoe.comparison.board import show_scores
from fedmoe.comparison.config import slug
from fedmoe.comparison.files import write_numbers, write_pages
from fedmoe.comparison.result import Result, read_result
from fedmoe.comparison.study import Case, Study, VariantInfo
from fedmoe.errors import FedMoEError, FedMoEWarning


def compare_runs(folders: Sequence[Path], console: Console | None = None) -> Path:
    """Write the comparison of finished runs with the first of them, and return its folder.

    Raises:
        FedMoEError: there is only one run; one is none, or has not ended; or their tiers or their
            metrics differ.
    """
    if len(folders) < 2:
        raise FedMoEError(f"{folders[0]} is one run; name another to compare it with")
    results = [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    _check_alike(results)
    if len(models := sorted({r.settings.get("model.path", "mini") for r in results})) > 1:
        said = "a difference is not the adapters' alone, and losses of two tokenizers are not alike"
        said = f"the runs have different models, {', '.join(models)}: {said}"
        warnings.warn(said, FedMoEWarning, stacklevel=2)
    tested = {r.of_examples.sha256 for r in results}
    case = Case(
        name="",
        reference=results[0].variant,
        results=tuple(results),
        pairs="examples" if len(tested) == 1 and "" not in tested else "none",
    )
    study = Study(
        name=" and ".join(r.variant for r in results),
        reference=case.reference,
        cases=(case,),
        variants={
            r.variant: VariantInfo(about=r.settings.get("aggregation.name", "")) for r in results
        },
        num_planned=len(results),
    )
    out = folders[0].parent / f"compare-{slug('-'.join(r.variant for r in results))[:80]}"
    out.mkdir(exist_ok=True)
    write_numbers(study, out)
    write_pages(study, out)
    show_scores(study, console or Console(quiet=True))
    return out


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' names; where two are the same, their paths; or numbered."""
    for names in ([f.resolve().name for f in folders], [str(f) for f in folders]):
        if len({*names}) == len(names):
            return names
    return [f"{f}, {n}" for f, n in zip(folders, count(1), strict=False)]


def _read(folder: Path, name: str) -> Result:
    result = read_result(name, 0, folder)
    if result is None:
        raise FedMoEError(f"{folder} has not ended: it has no last test scores to compare")
    return replace(result, seed=int(result.settings.get("seed", 0)))


def _check_alike(results: Sequence[Result]) -> None:
    """Refuse runs whose scores are of different kinds."""
    first, *others = results
    for other in others:
        for what, (ours, theirs) in {
            "tiers": (sorted(first.num_examples), sorted(other.num_examples)),
            "metrics": (_metric(first), _metric(other)),
        }.items():
            if ours != theirs:
                raise FedMoEError(
                    f"{first.variant} and {other.variant} have different {what}, so their scores "
                    f"cannot be compared: {', '.join(ours)} and {', '.join(theirs)}"
                )


def _metric(result: Result) -> list[str]:
    """Return what makes a score: its metric, and where none was chosen the data's own."""
    settings, chosen = result.settings, "evaluation.metric"
    own = settings.get(chosen, "null") != "null"
    named = own or any(name.startswith(f"{chosen}.") for name in settings)
    names = ([chosen] if own else []) if named else ["data.name"]
    found = (f"{name}={value}" for name in names if (value := settings.get(name)))
    return [*([f"metric {result.metric}"] if result.metric else []), *found]
