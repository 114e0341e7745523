"""A run's first adapter: fresh, or one that was trained before, fitted to this run's layout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fedmoe.adapter import Adapter, Layout, components, initial_adapter
from fedmoe.aggregation.factored import best_factors
from fedmoe.config.load import load
from fedmoe.errors import ConfigError, Fault, FedMoEError
from fedmoe.models.memory.meta import meta_model
from fedmoe.report.units import listed
from fedmoe.runs.round_files import written_identity
from fedmoe.runs.saved_adapter import deployed, read_adapter
from fedmoe.seeds import generator

if TYPE_CHECKING:
    from fedmoe.config import Experiment
    from fedmoe.models.adapted import AdaptedModel

SETTING = "adapter.start"
ROUNDING = 1e-6
"""Share of a product's size that a cut to a lower rank may lose without a word."""


@dataclass(frozen=True, eq=False)
class Start:
    """An adapter that was trained before, in the layout in which the strategy keeps it."""

    adapter: Adapter
    notes: tuple[str, ...]
    """Where it comes from and what was done to it, in sentences."""


class Found(NamedTuple):
    """A saved adapter: by weight its factors (A, B, scale), and its routers' shifts."""

    factors: dict[str, tuple[Tensor, Tensor, float]]
    shifts: dict[str, Tensor]
    notes: list[str]


def first_adapter(experiment: Experiment, layout: Layout) -> Adapter:
    """Return the adapter that follows from the seed alone, and changes nothing."""
    return initial_adapter(layout, generator(experiment.seed, "adapter"))


def read_start(experiment: Experiment, model: AdaptedModel, base: str) -> Start | None:
    """Return the adapter that `adapter.start` names, fitted to the run; None where it names none.

    Factors of another rank or scale keep their product `scale * B A`: `B` takes the ratio of the
    scales; missing components are the run's fresh ones, whose `B` is zero; components too many are
    cut to the nearest product of the run's rank.

    Args:
        base: the digest of its frozen weights.

    Raises:
        ConfigError: there is no adapter; it is of another base model, or adapts what this run does
            not.
    """
    if not experiment.adapter.start:
        return None
    path, strategy = Path(experiment.adapter.start).expanduser(), experiment.aggregation
    try:
        found = _read(path, experiment, model, base)
    except FedMoEError as error:
        raise ConfigError("experiment", [Fault(SETTING, str(error))]) from error
    layout = strategy.start_layout(model.layout)
    fresh = first_adapter(experiment, model.layout)
    if layout != model.layout:  # components that no client trains need no fresh values
        fresh = Adapter(layout, torch.zeros(layout.size))
    if faults := [*_faults(found, layout)]:
        raise ConfigError("experiment", faults)
    return Start(fresh, (f"starts from {path}", *found.notes, *_fill(fresh, found)))


def _read(path: Path, experiment: Experiment, model: AdaptedModel, base: str) -> Found:
    """Return what lies at a path: a PEFT folder, a run's folder, or one of its files."""
    if (path / "adapter_config.json").is_file():
        from fedmoe.models.peft_folder import read_peft  # peft takes a second to import

        peft = read_peft(path, model, experiment.model)
        same = peft.base == experiment.model.path
        notes = [] if same else [f"its base is called {peft.base!r}; the shapes are this model's"]
        return Found(dict(peft.factors), peft.shifts, notes)
    if (path / "config.yaml").is_file():
        best = path / "adapter-best.safetensors"
        last = [] if best.is_file() else ["no adapter was the best yet: its last one is taken"]
        file = path / "adapter-last.safetensors" if last else best
        return _of_run(file, experiment, model, base, last)
    if path.suffix == ".safetensors" and path.is_file():
        return _of_run(path, experiment, model, base, [])
    raise FedMoEError(
        f"{path} holds no adapter; expected the folder of a run, a .safetensors file of one, or a "
        "PEFT folder"
    )


def _of_run(
    file: Path, experiment: Experiment, model: AdaptedModel, base: str, notes: list[str]
) -> Found:
    """Return the adapter in a run's file, as the run's model computes with it."""
    config = file.parent / "config.yaml"
    if not config.is_file():
        # Nothing says its alpha: it must be of this run's own layout.
        state = read_adapter(file, model.layout)[0]
        return _parts(state, notes)
    theirs = load(type(experiment), config)
    notes = notes + _same_base(file.parent, theirs, experiment, base)
    layout = meta_model(experiment.model, theirs.adapter, theirs.gating).layout
    initial = first_adapter(theirs, layout)
    if theirs.adapter.start and theirs.aggregation.warm == "here":
        raise FedMoEError(f"{file.parent} started from {theirs.adapter.start} itself; export it")
    state, rescalers, number = read_adapter(file, theirs.aggregation.first_state(initial).layout)
    if any(bool((factors != 1).any()) for factors in rescalers.values()):
        notes.append("its factors on layers' outputs (rescaling) stay behind")
    return _parts(deployed(theirs, initial, state, number, model.full_top_k), notes)


def _same_base(folder: Path, theirs: Experiment, experiment: Experiment, base: str) -> list[str]:
    """Return what cannot be told about the base model of a run; refuse another one's."""
    before = written_identity(folder).get("model")
    if before == base:
        return []
    if before and theirs.model.dtype == experiment.model.dtype:
        raise FedMoEError(
            f"{folder} adapts another base model ({theirs.model.path}, {before}); model.path "
            f"{experiment.model.path!r} is {base}"
        )
    return [f"whether {theirs.model.path} ({theirs.model.dtype}) was the same base is not known"]


def _parts(adapter: Adapter, notes: list[str]) -> Found:
    found, views = Found({}, {}, notes), adapter.views()
    for entry in adapter.layout.entries:
        path, _, kind = entry.name.rpartition(".")
        if kind == "A":
            found.factors[path] = views[entry.name], views[f"{path}.B"], adapter.layout.scale
        elif kind != "B":
            found.shifts[entry.name] = views[entry.name]
    return found


def _faults(found: Found, layout: Layout) -> Iterator[Fault]:
    """Yield tensors that the run does not adapt, and those of other shapes."""
    shapes = {entry.name: entry.shape for entry in layout.entries}
    wanted = {f"{path}.A" for path in found.factors} | {*found.shifts}
    if lost := sorted(wanted - {*shapes}):
        said = f"it adapts {len(lost)} parts that this run does not, such as {lost[0]}"
        yield Fault(SETTING, f"{said}; set adapter.attention and adapter.router as they were")
    for path, (a, b, _) in found.factors.items():
        sides = (*a.shape[:-2], b.shape[-2], a.shape[-1])
        if (shape := shapes.get(f"{path}.A")) is None:
            continue
        mine = (*shape[:-2], shapes[f"{path}.B"][-2], shape[-1])
        if sides != mine:
            yield Fault(SETTING, f"{path} is {sides} there and {mine} here: another base model")
            return


@torch.no_grad()
def _fill(into: Adapter, found: Found) -> Iterator[str]:
    """Write the factors into `into`, and yield what was done to them."""
    layout, views = into.layout, into.views()
    missing, ranks, ratios, lost, whole = [], set(), set(), 0.0, 0.0
    for entry in layout.entries:
        path, _, kind = entry.name.rpartition(".")
        if kind == "A" and (factors := found.factors.get(path)):
            a, b, scale = factors
            ranks.add(rank := a.shape[-2])
            ratios.add(ratio := scale / layout.scale)
            if rank > layout.rank:
                a, b, cut, size = _cut(a, b, ratio, layout.rank, views[entry.name])
                lost, whole = lost + cut, whole + size
            elif ratio != 1:
                b = b * ratio
            for name, value in ((entry.name, a), (f"{path}.B", b)):
                there = next(e for e in layout.entries if e.name == name)
                components(there, views[name], 0, value.shape[there.rank_axis or -1]).copy_(value)
        elif kind == "A":
            missing.append(path)
        elif entry.rank_axis is None and entry.name in found.shifts:
            views[entry.name].copy_(found.shifts[entry.name])
        elif entry.rank_axis is None:
            missing.append(entry.name)
    yield from _notes(layout, missing, ranks, ratios, math.sqrt(lost / whole) if whole else 0.0)


def _cut(
    a: Tensor, b: Tensor, ratio: float, rank: int, fresh: Tensor
) -> tuple[Tensor, Tensor, float, float]:
    """Return the nearest product of a lower rank, and the squares of what is lost and of all."""
    best = best_factors(torch.ones(1, *a.shape[:-2]), [ratio], [b], [a], rank)
    squares = best.values.square()
    # A component of which nothing is left would never learn with both factors zero.
    idle = (best.A == 0).all(-1, keepdim=True)
    lost = float(squares[..., rank:].sum())
    return torch.where(idle, fresh, best.A), best.B, lost, float(squares.sum())


def _notes(
    layout: Layout, missing: list[str], ranks: set[int], ratios: set[float], lost: float
) -> Iterator[str]:
    for rank in sorted(ranks - {layout.rank}):
        if rank < layout.rank:
            yield f"rank {rank} becomes {layout.rank}: the added components are fresh"
        else:
            share = f"{lost:.2%} of its size is lost" if lost > ROUNDING else "nothing is lost"
            yield f"rank {rank} is cut to {layout.rank}, to the nearest product: {share}"
    if ratios - {1.0}:
        yield f"alpha / rank becomes {layout.scale:g}: B is rescaled, which changes no product"
    if missing:
        yield f"{len(missing)} parts begin fresh, such as {listed(missing[:1])}"
