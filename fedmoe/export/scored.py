"""Sources of scores: a run's adapter at its tiers, an exported adapter, or a base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fedmoe.config import Experiment
from fedmoe.data.text import TextSettings
from fedmoe.errors import FedMoEError
from fedmoe.export.loaded import facts_of, load_run
from fedmoe.export.peft import CONFIG, load_export
from fedmoe.export.saved import SavedRun
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.build import ModelSettings, build_model, model_folder
from fedmoe.models.pretrained_gating import gating_of
from fedmoe.models.rescaling import NoRescaling

FULL = "full"
"""The name of a model's own k, where there are no tiers."""


@dataclass(frozen=True, eq=False)
class Source:
    """A model with the budgets at which it is scored."""

    model: AdaptedModel
    tokenizer: Any
    experiment: Experiment
    """The run's; of other sources the settings by which rows are worded."""
    tiers: Mapping[str, Callable[[], int]]
    """By tier: makes the model compute as a client of it would, and returns its k."""
    is_run: bool = False
    round: int = 0


def open_source(source: Path | str, which: str, base: str, tiers: Sequence[str]) -> Source:
    """Open a run's folder, the folder of an exported adapter, or a base model.

    Args:
        source: the folder, or for a base model `mini` or an id on the Hub.
        which: `last` or `best`, of a run's adapters.
        base: the base model of an exported adapter; empty for the one that the adapter names.
        tiers: tiers of a run to score at; all of them when empty.

    Raises:
        FedMoEError: it is none of these, or has no such tier.
    """
    folder = Path(source).expanduser()
    if (folder / "ledger.jsonl").is_file():
        return _of_run(folder, which, tiers)
    if tiers:
        raise FedMoEError(f"{source} is no run, and so has no tiers; leave --tier out")
    facts: Mapping[str, Any] = {}
    if (folder / CONFIG).is_file():
        model, tokenizer, path = load_export(folder, base)
        facts = facts_of(folder)
    else:
        path = str(source)
        gating = gating_of(Path(model_folder(path)))
        settings = ModelSettings(path=path)
        model, tokenizer = build_model(settings, LoRA(rank=1), NoRescaling(), gating)
    # What is too long is counted, as are all rows that are not used.
    experiment = Experiment(model=ModelSettings(path=path), text=TextSettings(too_long="drop"))

    def use() -> int:
        top_k = facts.get("top_k", model.full_top_k)
        model.set_budget(top_k, None)
        return top_k

    return Source(model, tokenizer, experiment, {facts.get("tier") or FULL: use})


def _of_run(folder: Path, which: str, wanted: Sequence[str]) -> Source:
    known = SavedRun.experiment_of(folder, which).budget.resolved(1)
    chosen = [*(wanted or known)]
    if subset := [name for name in chosen if name in known and known[name].subset]:
        others = [name for name in known if not known[name].subset]
        raise FedMoEError(
            f"tier {subset[0]!r}: each of its clients keeps the experts that its own data choose, "
            f"so it has no common model; give --tier one of {', '.join(others) or 'another run'}"
        )
    loaded = load_run(folder, which, chosen)
    assert loaded.saved is not None
    experiment = replace(loaded.saved.experiment, text=loaded.text)
    use_of = {name: partial(loaded.use, name) for name in chosen}
    return Source(
        loaded.model, loaded.tokenizer, experiment, use_of, is_run=True, round=loaded.saved.round
    )
