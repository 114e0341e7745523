"""The largest number of experts that fits a machine and a deadline, and why not one more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedmoe.budget.model import forward_flops, kept_bytes, memory, step_seconds
from fedmoe.models.memory.stored import can_quantise
from fedmoe.models.memory.subset import Subset

if TYPE_CHECKING:
    from fedmoe.budget.model import Constants, Memory
    from fedmoe.budget.probe import Machine
    from fedmoe.budget.shape import Shape
    from fedmoe.budget.work import Work
    from fedmoe.models.memory.stored import Frozen
    from fedmoe.models.memory.subset import LeftOut

UNCOUNTED = (
    "What models of this type keep for backward outside their experts could not be told by a dry "
    "run: memory may be more than is said here; leave room (budget.memory_share)."
)
SHARE = 0.9
"""Share of the free memory that a plan may fill: predictions err by up to a tenth."""
SMALLER: tuple[tuple[Frozen, str], ...] = (("int8", "int8"), ("int4", "4 bits"))
"""Forms of the frozen experts, largest first, and what reasons call them."""
SHARES = (0.75, 0.5, 0.25)
"""Shares of a layer's experts that a subset may keep; never fewer than the model's K."""


@dataclass(frozen=True)
class Option:
    """A client's round with one number of experts, as predicted."""

    top_k: int
    work: Work
    memory: Memory
    compute_seconds: float
    link_seconds: float

    @property
    def seconds(self) -> float:
        """The whole round: the task arrives, is trained on, and the update is sent."""
        return self.compute_seconds + self.link_seconds


@dataclass(frozen=True)
class Plan:
    """The number of experts that a client activates on its machine, and how it trains."""

    options: tuple[Option, ...]
    """Every k from 1 to K, with the micro-batch, recomputation and form of the frozen experts that
    were settled on."""
    choice: Option | None
    """The one it takes; None to sit out."""
    most_bytes: float
    """Memory that it may fill."""
    reasons: tuple[str, ...]
    """Why, a sentence for each step."""

    @property
    def top_k(self) -> int:
        """The experts it activates; 0 to sit out."""
        return self.choice.top_k if self.choice else 0


def options(shape: Shape, work: Work, machine: Machine, constants: Constants) -> tuple[Option, ...]:
    """Every k from 1 to K as predicted: memory at the longest batch, time at a mean one."""
    return tuple(_option(shape, work, machine, constants, k) for k in range(1, shape.top_k + 1))


def _option(shape: Shape, work: Work, machine: Machine, constants: Constants, k: int) -> Option:
    mean = work.setting(k, longest=False)
    profiled = work.subset.examples if work.subset else 0  # before the round, as one of the probes
    probed = replace(mean, batch_size=2 * work.probe_examples + profiled)
    compute = work.steps * work.accumulation * step_seconds(shape, mean, constants)
    compute += constants.seconds_per_flop * forward_flops(shape, probed)
    link = machine.link.seconds(work.bytes_down, work.bytes_up) if machine.link else 0.0
    return Option(k, work, memory(shape, work.setting(k, longest=True), constants), compute, link)


def plan_for(
    shape: Shape,
    work: Work,
    machine: Machine,
    constants: Constants,
    *,
    deadline_seconds: float | None = None,
    share: float = SHARE,
    most_top_k: int | None = None,
    loaded: bool = False,
    settled: bool = False,
    outcomes: tuple[LeftOut, ...] = ("merge", "drop"),
) -> Plan:
    """The largest k whose round fits `share` of the free memory and ends by the deadline.

    Of the ways to save memory (see `_ladder`) the first is taken that allows the largest k that any
    of them allows, so that more memory never means fewer experts; where none allows k = 1 the
    client sits out. Each step is said, with what it takes in time: a smaller micro-batch does not
    shorten a round, so against a deadline it is no help.

    Args:
        deadline_seconds: of a round, from the task's sending to the update's arrival.
        share: of `machine.free_bytes` that may be filled.
        most_top_k: k is at most this, whatever fits.
        loaded: the frozen weights are in memory already, in the form that `work` names, and free
            memory is without them; what a smaller form of theirs leaves is then free as well.
        settled: how a round is trained is not to be changed: k is all that is left to choose.
        outcomes: what may become of experts outside a subset; see `subsets.possible`.
    """
    most, top = share * machine.free_bytes, min(most_top_k or shape.top_k, shape.top_k)
    reasons, free = [] if shape.counted else [UNCOUNTED], _gb(machine.free_bytes)
    taken = kept_bytes(shape, work.setting(1, longest=True)) if loaded else 0
    found = asked = options(shape, work, machine, constants)
    best: Plan | None = None
    for rung, said in [(work, "")] if settled else _ladder(shape, work, outcomes):
        if lacking := _no_room(shape, work, rung, machine, share):
            reasons += [lacking] if lacking not in reasons else []
            continue
        found = options(shape, rung, machine, constants)
        need = [option.memory.total - taken for option in found]
        if said:
            times = found[0].compute_seconds / asked[0].compute_seconds
            reasons.append(f"{said} It computes {times:.2f} times as long as without any of this.")
        if need[0] <= most:
            made = _by_time(found, need, most, deadline_seconds, top, tuple(reasons))
            best = made if best is None or made.top_k > best.top_k else best
            if best.top_k == top:
                return best
        if (fits := sum(size <= most for size in need)) < top:
            beside = " beside the weights that are loaded" if loaded else ""
            said = f"With k = {fits + 1} and {_batch(rung)} a step needs {_gb(need[fits])}{beside}"
            reasons.append(f"{said}; {_gb(most)} may be used ({share:.0%} of {free} free).")
    if best is None:
        return Plan(found, None, most, (*reasons, "It sits out: nothing is left to save."))
    if settled or best.choice is None:
        return best
    *steps, why = best.reasons
    return replace(best, reasons=(*steps, "Nothing that saves more memory allows a larger k.", why))


def _ladder(shape: Shape, work: Work, outcomes: tuple[LeftOut, ...]) -> Iterator[tuple[Work, str]]:
    """The ways to use less memory, one after another, and what each one is.

    A smaller micro-batch (with more of them, so that a step stays what it was), then recomputation,
    then frozen experts in int8, then in 4 bits, then fewer of them (a subset in the smallest form:
    three quarters, half, a quarter; the others merged into one, or, for the room of that one,
    dropped), then the offload of all in full.

    A subset comes after quantisation because it is lossier: int8 changes every weight a little, and
    a subset takes experts away, on other clients' data above all. It comes before offload, which
    loses nothing, because that reads every weight from elsewhere at every product: a client that
    waits for its disk trains at a fraction of its speed. After it, a subset would never be reached.
    """
    yield work, ""
    for smaller in work.smaller():
        count = f"{_batch(smaller)}, {smaller.accumulation} to a step"
        yield smaller, f"A smaller micro-batch: {count}, so that a step stays what it was."
    batches = [replace(rung, recompute=True) for rung in (work, *work.smaller())]
    for rung in batches if not work.recompute else ():
        said = f"Recomputation of the experts' activations in backward, with {_batch(rung)}."
        yield rung, said
    full = _gb(shape.experts_bytes("full"))
    forms = [pair for pair in SMALLER if can_quantise(shape.rows, pair[0])]
    for frozen, name in forms:
        kept = f"{_gb(shape.experts_bytes(frozen))} in place of {full}"
        for rung in batches:
            yield (
                replace(rung, frozen=frozen),
                f"Frozen experts in {name}, {kept} once they are loaded, with {_batch(rung)}.",
            )
    smallest, name = forms[-1]
    for subset in subsets(shape, outcomes):
        kept = f"{_gb(shape.experts_bytes(smallest, subset))} in {name} in place of {full}"
        for rung in batches:
            yield (
                replace(rung, frozen=smallest, subset=subset),
                f"A subset of {subset.keep} of {shape.num_experts} experts, the others "
                f"{subset.outcome}, {kept}, with {_batch(rung)}.",
            )
    for rung in batches:
        where = "main memory" if shape.on_gpu else "a file"
        said = f"Offload of the frozen experts, {full} in {where}, with {_batch(rung)}."
        yield replace(rung, offload=True), said


def subsets(shape: Shape, outcomes: tuple[LeftOut, ...]) -> Iterator[Subset]:
    """The subsets that a plan tries, the most memory first."""
    sizes = {max(shape.top_k, round(share * shape.num_experts)) for share in SHARES}
    for keep in sorted(sizes - {shape.num_experts}, reverse=True):
        if "merge" in outcomes and keep + 1 < shape.num_experts:
            yield Subset(keep=keep, left_out="merge")
        if "drop" in outcomes:
            yield Subset(keep=keep)


def _by_time(
    found: tuple[Option, ...],
    need: list[float],
    most: float,
    deadline: float | None,
    top: int,
    reasons: tuple[str, ...],
) -> Plan:
    """Return a plan with the largest option that fits memory and deadline; k = 1 fits memory."""
    fits = max(k for k, needed in enumerate(need, 1) if needed <= most)
    in_time = [o.top_k for o in found if deadline is None or o.seconds <= deadline]
    k = min(top, fits, max(in_time, default=0))
    if not k:
        first = found[0]
        return Plan(
            found,
            None,
            most,
            (
                *reasons,
                (
                    f"It sits out: with k = 1 a round takes {first.seconds:.3g} s "
                    f"({first.link_seconds:.3g} s of it for messages), over the deadline of "
                    f"{deadline:.3g} s."
                ),
            ),
        )
    if k == len(found):
        why = f"k = {k}, which is all: it needs {_gb(need[k - 1])} of {_gb(most)}."
    elif k == top:
        why = f"k = {k}, which is the most that it may take."
    elif k == fits:
        why = f"k = {k}: k = {k + 1} would need {_gb(need[k])}, and {_gb(most)} may be used."
    else:
        why = (
            f"k = {k}: a round with k = {k + 1} would take {found[k].seconds:.3g} s, over the "
            f"deadline of {deadline:.3g} s."
        )
    return Plan(found, found[k - 1], most, (*reasons, why))


def _no_room(shape: Shape, asked: Work, rung: Work, machine: Machine, share: float) -> str:
    """Why the frozen experts cannot be offloaded; nothing where they can, or nobody has looked.

    So are all of those that a subset is kept of.
    """
    needed, room = shape.experts_bytes(rung.frozen), machine.offload_bytes
    same = (rung.offload, rung.subset) == (asked.offload, asked.subset)
    if same or room is None or needed <= share * room:
        return ""
    where = "main memory" if shape.on_gpu else "the disk of TMPDIR"
    what = "Offload" if rung.offload else "A subset"
    return (
        f"{what} of the frozen experts would put {_gb(needed)} into {where}; {_gb(share * room)} "
        f"may be used ({share:.0%} of {_gb(room)} free)."
    )


def _batch(work: Work) -> str:
    each = f" of each of {work.clients} clients in a pass" if work.clients > 1 else ""
    return f"a micro-batch of {work.batch_size} x {work.longest} tokens{each}"


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
