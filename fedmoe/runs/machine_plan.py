"""Plans for machines: how many experts one affords, and how well that was predicted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from fedmoe.budget import Auto
from fedmoe.budget.auto import analytic, offload_rate, tier_plans
from fedmoe.budget.calibrate import calibrated, settings_to_measure
from fedmoe.budget.measure import TURNS, TURNS_SECONDS, measure, measure_in_turns, restoring_seconds
from fedmoe.budget.plan import plan_for
from fedmoe.budget.probe import Machine, probe
from fedmoe.budget.replan import ran_out_of_memory, release_cached
from fedmoe.budget.shape import shape_of
from fedmoe.budget.work import work_at_most, work_on
from fedmoe.data import load_splits
from fedmoe.data.wording import tokenize
from fedmoe.errors import ConfigError, DataError, Fault, ModelError
from fedmoe.messages.codec import most_bytes
from fedmoe.models.build import build_model
from fedmoe.models.memory.frozen import weights_of
from fedmoe.models.memory.meta import meta_model
from fedmoe.models.memory.stored import BITS, can_quantise
from fedmoe.models.tasks import require_causal
from fedmoe.runs.subsets import possible
from fedmoe.training.trial import trial_steps

if TYPE_CHECKING:
    from fedmoe.budget.measure import Sample
    from fedmoe.budget.model import Constants
    from fedmoe.budget.plan import Plan
    from fedmoe.budget.shape import Setting, Shape
    from fedmoe.budget.work import Work
    from fedmoe.config import Experiment
    from fedmoe.data.text import Tokens
    from fedmoe.devices import Device
    from fedmoe.models.adapted import AdaptedModel
    from fedmoe.models.memory.stored import Frozen
    from fedmoe.training.settings import Training

T = TypeVar("T")
Say = Callable[[str], None]
Progress = Callable[[int, int], None]
STEPS = 3
"""Measured steps of a setting, after one to warm up."""
ACCURATE_TURNS = 5


@dataclass(frozen=True, eq=False)
class MachinePlan:
    """A plan for a machine, and what it was made from."""

    machine: Machine
    plan: Plan
    work: Work
    """A client's round as configured."""


@dataclass(frozen=True, eq=False)
class Accuracy:
    """Measured steps that no prediction was fitted to, and what predicts them."""

    shape: Shape
    constants: Constants
    samples: Sequence[Sample]


def plan_device(e: Experiment, device: Device) -> MachinePlan:
    """Return the plan for a device from the config alone: no weights, no data, no measurement.

    Every example is taken to be as long as `text.max_length`, and a response in whole.
    """
    model, machine = meta_model(e.model, e.adapter, e.gating), Machine.of_device(device)
    require_causal(model.model, "fedmoe plan")
    if e.training.epochs is not None:
        said = "follows from a client's rows, which a plan from the config alone does not read"
        raise ConfigError("experiment", [Fault("training.epochs", f"{said}; use training.steps")])
    work = work_at_most(e.text.max_length, e.training, *_bytes(e, model))
    constants = analytic(machine, model.layout.num_layers)
    shape = shape_of(model, on_gpu=machine.on_gpu)
    return MachinePlan(machine, _plan(e, model, machine, shape, work, constants), work)


def plan_tiers(e: Experiment, budget: Auto) -> dict[str, MachinePlan]:
    """Return the plan of every tier's device as a run makes it: from the data, by arithmetic."""
    model, rows, _ = _loaded(e)
    args = (_training(e, rows), e.devices, e.aggregation, e.upload, possible(e, model))
    work = work_on(rows, _training(e, rows), *_bytes(e, model))
    return {
        tier: MachinePlan(Machine.of_device(e.devices[tier]), plan, work)
        for tier, plan in tier_plans(budget, model, rows, *args).items()
    }


def plan_here(
    e: Experiment, say: Say, *, accuracy: bool = False, progress: Progress = lambda *_: None
) -> tuple[MachinePlan, Accuracy | None]:
    """Return the plan for this machine, calibrated with real steps.

    Args:
        say: told in a sentence where memory was short.
        accuracy: measure further steps, to hold the predictions against.
        progress: told how many of how many measurements are done.

    Raises:
        FedMoEError: the model or the data cannot be had, or a step fails; or memory runs out even
            in the smallest one.
    """
    model, rows, pad = _loaded(e)
    machine, shape = probe(model.device), shape_of(model)
    requested, smaller = (
        work_on(rows, _training(e, rows), *_bytes(e, model)),
        forms_to_measure(shape),
    )
    step, weight_bytes = trial_steps(model, rows, pad), shape.weight_bytes
    if accuracy:
        model.frozen.hold(dict.fromkeys(("full", *smaller), False))
        weight_bytes += sum(model.frozen.num_bytes(form) for form in smaller)
    turns, most = (ACCURATE_TURNS, math.inf) if accuracy else (TURNS, TURNS_SECONDS)

    def take(setting: Setting) -> Sample:
        return measure(step, setting, STEPS, model.device, weight_bytes)

    def at(work: Work, k: int) -> tuple[list[Sample], list[Sample]]:
        longest = work.setting(k, longest=True)
        known = settings_to_measure(longest, k)
        others = held_out(longest, k, smaller) if accuracy else []
        settings = [*known, *others]
        told = _told(take, turns * len(settings), progress)
        samples = measure_in_turns(told, settings, turns, most)
        return samples[: len(known)], samples[len(known) :]

    (known, others), work, k = roomiest(at, requested, shape.top_k, say)
    weights, _ = weights_of(model.layers[0])
    constants = replace(
        calibrated(shape, known),
        seconds_per_offloaded_byte=offload_rate(machine),
        seconds_per_restored={form: restoring_seconds(weights, form) for form in smaller},
    )
    work = replace(work, clients=e.simulation.clients_per_pass)  # predicted from steps of one
    plan = _plan(e, model, machine, shape, work, constants, loaded=True, most_top_k=k)
    found = Accuracy(shape, constants, others) if accuracy else None
    return MachinePlan(machine, plan, work), found


def _told(
    take: Callable[[Setting], Sample], total: int, progress: Progress
) -> Callable[[Setting], Sample]:
    """Return `take`, which then tells how often it has been called."""
    done = itertools.count(1)

    def told(setting: Setting) -> Sample:
        sample = take(setting)
        progress(next(done), total)
        return sample

    progress(0, total)
    return told


def roomiest(
    attempt: Callable[[Work, int], T], work: Work, top_k: int, say: Say
) -> tuple[T, Work, int]:
    """Return the result of `attempt` at the most work and k that memory suffices for, and both.

    A smaller micro-batch is tried before a smaller k, as a plan does. Where memory ran out,
    `say` is told.

    Raises:
        ModelError: memory ran out with k = 1 and one example at a time, too.
    """
    size = short = ""
    for k, tried in itertools.product(range(top_k, 0, -1), (work, *work.smaller())):
        size = f"k = {k} and a micro-batch of {tried.batch_size} x {tried.longest} tokens"
        try:
            found = attempt(tried, k)
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            short = f"Calibration ran out of memory with {size}"
        else:
            if short:
                say(f"{short}; it was done with {size}, which is now the most.")
            return found, tried, k
        release_cached()  # outside the handler: only now are the error and its tensors gone
    raise ModelError(
        f"not one step could be measured, down to {size}: memory ran out. Free some on "
        "this machine, or shorten the examples (text.max_length)"
    )


def forms_to_measure(shape: Shape) -> list[Frozen]:
    """Return the smaller forms that this model's experts can be stored in."""
    return [form for form in BITS if can_quantise(shape.rows, form)]


def held_out(longest: Setting, full_top_k: int, smaller: Sequence[Frozen] = ()) -> list[Setting]:
    """Return settings to hold predictions against; none of them is calibrated with.

    Those of the `smaller` forms of the frozen experts come last.
    """
    half = max(1, longest.batch_size // 2)
    shapes = [(longest.batch_size, 2), (longest.batch_size, 3), (half, 4), (half, 2)]
    ks = sorted({1, max(1, full_top_k // 2), full_top_k})
    settings = [
        replace(
            longest,
            top_k=k,
            batch_size=batch,
            length=max(2, longest.length * quarters // 4),
            targets=max(1, longest.targets * quarters // 4),
        )
        for batch, quarters in shapes
        for k in ks
    ]
    settings += [replace(longest, top_k=k) for k in ks[1:-1]]
    settings += [replace(longest, top_k=k, recompute=True) for k in (1, full_top_k)]
    for form in smaller:
        settings += [replace(longest, top_k=k, frozen=form) for k in (1, full_top_k)]
        settings.append(replace(longest, batch_size=1, top_k=1, frozen=form, recompute=True))
    used = settings_to_measure(longest, full_top_k)
    return [s for s in dict.fromkeys(settings) if s not in used]


def _loaded(e: Experiment) -> tuple[AdaptedModel, Sequence[Tokens], int]:
    """Return the model, all training examples, and the padding token."""
    tokenizer: Any
    model, tokenizer = build_model(e.model, e.adapter, e.rescaling, e.gating)
    require_causal(model.model, "fedmoe plan")
    _, rows = tokenize(load_splits(e.data, e.seed).train, tokenizer, e.data.wording(e.text))
    if not rows:
        raise DataError("there are no training examples to plan with")
    return model, rows, tokenizer.pad_token_id


def _training(e: Experiment, rows: Sequence[Tokens]) -> Training:
    """Return the settings of a client with the mean number of rows."""
    return e.training.on(-(-len(rows) // e.partition.num_clients))


def _plan(
    e: Experiment,
    model: AdaptedModel,
    machine: Machine,
    shape: Shape,
    work: Work,
    constants: Constants,
    *,
    loaded: bool = False,
    most_top_k: int | None = None,
) -> Plan:
    budget = e.budget if isinstance(e.budget, Auto) else Auto()
    on_its_own = isinstance(e.budget, Auto) and not e.devices
    return plan_for(
        shape,
        work,
        machine,
        constants,
        deadline_seconds=budget.deadline_seconds,
        share=budget.memory_share,
        most_top_k=most_top_k,
        loaded=loaded,
        outcomes=possible(e, model, on_its_own=on_its_own),
    )


def _bytes(e: Experiment, model: AdaptedModel) -> tuple[int, int]:
    layouts = e.aggregation.layouts(model.layout, 1)
    return most_bytes(layouts.task, layouts.update, e.upload)
