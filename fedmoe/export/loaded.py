"""A model that answers: a run's at each of its tiers, an exported adapter's, or a base model.

It is loaded once. Which tier's adapter, k, factors and form of experts it computes with is a copy
of a buffer and a few numbers, so that every question may be at another tier.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.budget import Tier
from fedmoe.data.text import TextSettings
from fedmoe.errors import FedMoEError
from fedmoe.export.exported import CERTIFICATE
from fedmoe.export.peft import CONFIG, load_export
from fedmoe.export.saved import SavedRun
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.build import MINI, ModelSettings, build_model, model_folder
from fedmoe.models.memory.frozen import forms_of
from fedmoe.models.memory.stored import Frozen
from fedmoe.models.pretrained_gating import gating_of
from fedmoe.models.rescaling import NoRescaling
from fedmoe.report.facts import adapter_note
from fedmoe.report.run import read_run
from fedmoe.runs.subsets import places

FULL = ""
"""The level of a run at the model's own k and full rank, whatever its tiers."""
BASE = "base"
"""The level of the base model without an adapter."""
ALONE = "adapter"
"""The level of an exported adapter that is for no tier."""
SUBSET = (
    "each of its clients keeps the experts that its own data choose, and there are no data here"
)


Factors = Callable[[int], Tensor | None]


@dataclass(frozen=True, eq=False)
class Level:
    """A way in which a loaded model computes."""

    top_k: int
    frozen: Frozen = "full"
    adapter: Adapter | None = None
    """None for the model as it was loaded, without one or with one merged in."""
    factors: Factors = lambda top_k: None
    """Returns the factors (layers,) on the layers' outputs at a k."""


class Loaded:
    """A model with its levels; `use` chooses the one that it computes with.

    Example:
        >>> loaded = load("mini")
        >>> loaded.use("base", top_k=2)
        2
    """

    def __init__(
        self,
        model: AdaptedModel,
        tokenizer: Any,
        text: TextSettings,
        levels: Mapping[str, Level],
        name: str,
        saved: SavedRun | None = None,
        left_out: Mapping[str, str] | None = None,
        note: str = "",
        complete: bool = True,
    ) -> None:
        self.model, self.tokenizer, self.text = model, tokenizer, text
        self.levels, self.name, self.saved = levels, name, saved
        self.left_out = left_out or {}
        """Tiers without a level, with the reason."""
        self.note, self.complete = note, complete
        """Which of a run's adapters this is; and whether the run is finished."""
        self._now: tuple[str, int] | None = None
        self._adapter: Adapter | None = None
        self._checked: set[int] = set()

    def use(self, name: str, top_k: int | None = None) -> int:
        """Compute at a level from now on, with its k or another; return the k.

        Factors belong to a k: at another k than its own a level has those of that k.

        Raises:
            FedMoEError: there is no such level, or the model cannot have this k.
        """
        if name in self.left_out:
            raise FedMoEError(f"tier {name!r}: {self.left_out[name]}")
        if name not in self.levels:
            known = ", ".join(map(repr, self.levels))
            raise FedMoEError(f"{name!r} is not one of {known}")
        level = self.levels[name]
        top_k = level.top_k if top_k is None else top_k
        self._check(top_k)
        if self._now != (name, top_k):
            self._now = None
            self.model.frozen.use(level.frozen)
            if level.adapter is not self._adapter:
                self.model.load(level.adapter) if level.adapter else self.model.flat.zero_()
                self._adapter = level.adapter
            self.model.set_budget(top_k, level.factors(top_k))
            self._now = name, top_k
        return top_k

    def _check(self, top_k: int) -> None:
        model = self.model
        if top_k in self._checked:
            return
        if not 1 <= top_k <= model.layout.num_experts:
            raise FedMoEError(f"top_k {top_k}: expected 1 to {model.layout.num_experts} experts")
        if said := model.gates.gating.misfit(model.layout.num_experts, top_k):
            raise FedMoEError(f"top_k {top_k}: {said}")
        model.check_top_ks({top_k})
        self._checked.add(top_k)


def load(
    source: Path | str,
    which: str = "last",
    base: str = "",
    experts: Frozen | None = None,
    offload: bool | None = None,
) -> Loaded:
    """Load a run's folder with all its tiers, the folder of an exported adapter, or a base model.

    Args:
        source: the folder, or for a base model `mini` or an id on the Hub.
        which: `last` or `best`, of a run's adapters.
        base: the base model of an exported adapter; empty for the one that the adapter names.
        experts: the form of frozen experts at every level; each tier's `frozen` when omitted.
        offload: have them in a mapped file, and read what the router asks for; as the tiers do
            when omitted. The answers are bitwise the same.

    Raises:
        FedMoEError: it is none of these, or cannot be loaded.
    """
    folder = Path(source).expanduser()
    if (folder / "ledger.jsonl").is_file():
        return load_run(folder, which, (), experts, offload)
    if (folder / CONFIG).is_file():
        return load_adapter(folder, base, experts, offload)
    return load_model(str(source), experts, offload)


def load_model(path: str, experts: Frozen | None = None, offload: bool | None = None) -> Loaded:
    """Load a base model, or one with an adapter merged in."""
    settings = ModelSettings(path=path)
    forms: dict[Frozen, bool] = {experts or "full": bool(offload)}
    gating, none = gating_of(Path(model_folder(path))), LoRA(rank=1)
    model, tokenizer = build_model(settings, none, NoRescaling(), gating, **_loading(forms))
    model.frozen.hold(forms, paged=True)
    # The built-in base was pretrained on plain prompts, and never saw its template.
    text = TextSettings(template="plain" if path == MINI else "auto")
    facts = facts_of(Path(path).expanduser())
    name = facts.get("tier") or (ALONE if facts else BASE)
    return Loaded(
        model, tokenizer, text, {name: Level(model.full_top_k, model.frozen.used)}, _name(path)
    )


def load_adapter(
    folder: Path, base: str = "", experts: Frozen | None = None, offload: bool | None = None
) -> Loaded:
    """Load the base model of an exported adapter, with the adapter merged in; see `load_export`."""
    model, tokenizer, _ = load_export(folder, base)
    model.frozen.hold({experts or "full": bool(offload)}, paged=True)
    facts = facts_of(folder)
    level = Level(facts.get("top_k", model.full_top_k), model.frozen.used)
    levels = {facts.get("tier") or ALONE: level}
    return Loaded(model, tokenizer, TextSettings(), levels, facts.get("name") or _name(str(folder)))


def load_run(
    folder: Path,
    which: str = "last",
    only: Sequence[str] = (),
    experts: Frozen | None = None,
    offload: bool | None = None,
) -> Loaded:
    """Load a run's model with a level for each tier and one for the base.

    Args:
        only: levels to load in place of these, such as `FULL`: others take memory.
        experts: the form of frozen experts at every level; see `load`.
        offload: whether they are in a mapped file.

    Raises:
        FedMoEError: it is no run, has no common model, or no such tier.
    """
    tiers = SavedRun.experiment_of(folder, which).budget.resolved(1)
    base = BASE if BASE not in tiers else f"{BASE}-model"
    if unknown := [name for name in only if name not in (*tiers, FULL, base)]:
        raise FedMoEError(f"--tier {unknown[0]!r} is not one of {', '.join(map(repr, tiers))}")
    names = only or [*tiers, base]
    subset = {name: SUBSET for name in names if name in tiers and tiers[name].subset}
    if only and subset:
        advice = "give --top-k, which uses all experts"
        raise FedMoEError(f"--tier {only[0]!r}: {SUBSET}; {advice}")
    used = {name: tiers[name] for name in names if name in tiers and name not in subset}
    asked: Iterable[tuple[Frozen, bool]] = (
        (experts or f, a if offload is None else offload) for f, a in places(used.values())
    )
    forms = forms_of(asked) or {experts or "full": bool(offload)}
    saved = SavedRun.open(folder, which, **_loading(forms))
    model, tiers = saved.model, saved.experiment.budget.resolved(saved.model.full_top_k)
    model.frozen.hold(forms, paged=True)
    levels = {name: _tier_level(saved, name, tiers[name], experts) for name in used}
    # Experts are in full where a tier has them so.
    form: Frozen = "full" if "full" in forms else next(iter(forms))
    if FULL in names:
        levels[FULL] = Level(model.full_top_k, form, saved.adapter(), _factors(saved))
    if base in names:
        ones = torch.ones(model.layout.num_layers)
        levels[base] = Level(model.full_top_k, form, None, lambda top_k: ones)
    text = saved.experiment.data.wording(saved.experiment.text)
    levels, name, run = _shared(levels), saved.experiment.name, read_run(folder)
    note = adapter_note(run, which, saved.round)
    return Loaded(model, saved.tokenizer, text, levels, name, saved, subset, note, run.complete)


def _loading(forms: Mapping[Frozen, bool]) -> dict[str, bool]:
    """Return how to load a model whose experts take these forms; all of them in full are one."""
    return {"experts_stay": True, "offload": forms != {"full": False}}


def _tier_level(saved: SavedRun, name: str, tier: Tier, experts: Frozen | None) -> Level:
    factors = _factors(saved, name, tier.top_k)
    return Level(tier.top_k, experts or tier.frozen, saved.adapter(name), factors)


def _factors(saved: SavedRun, tier: str = "", own: int = 0) -> Factors:
    """Return the factors that the run learnt by k: a tier's at its own, another tier's at its."""

    def factors(top_k: int) -> Tensor | None:
        return saved.rescalers.get(tier if top_k == own else saved.tier_of(top_k))

    return factors


def _shared(levels: Mapping[str, Level]) -> dict[str, Level]:
    """Return the levels with equal adapters as one: most tiers have the same."""
    found: list[Adapter] = []
    made = {}
    for name, level in levels.items():
        if (own := level.adapter) is not None:
            alike = [x for x in found if x.layout.digest == own.layout.digest]
            same = [x for x in alike if torch.equal(x.flat, own.flat)]
            found += [] if same else [own]
            level = replace(level, adapter=(same or [own])[0])
        made[name] = level
    return made


def facts_of(folder: Path) -> dict[str, Any]:
    """Return what an export says of itself, such as the tier that it is for; else nothing."""
    path = folder / CERTIFICATE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _name(path: str) -> str:
    return Path(path).name if Path(path).is_dir() else path
