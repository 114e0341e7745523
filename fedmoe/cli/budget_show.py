"""What `fedmoe plan` prints: the machine, every k as predicted, the choice, and the errors."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fedmoe.budget.measure import Sample
from fedmoe.budget.model import Constants, memory, step_seconds
from fedmoe.budget.plan import Plan
from fedmoe.budget.probe import Machine
from fedmoe.budget.shape import Setting, Shape
from fedmoe.budget.work import Work
from fedmoe.models.memory.subset import Subset
from fedmoe.report.units import bytes_text

WITHIN_MEMORY, WITHIN_TIME = 0.10, 0.20


def show_plan(machine: Machine, plan: Plan, asked: Work, console: Console) -> None:
    """Print the machine, a row for every k, and the reasons; `asked` is the work as configured."""
    where = "GPU" if machine.on_gpu else f"processor, {machine.threads} thread(s)"
    disk = machine.free_disk_bytes
    console.print(
        f"[bold]{machine.label}[/] ({where}): {bytes_text(machine.free_bytes)} free of "
        f"{bytes_text(machine.total_bytes)}, {bytes_text(round(plan.most_bytes))} may be used"
        + (f"; disk {bytes_text(disk)} free" if disk is not None else ""),
        soft_wrap=True,
        highlight=False,
    )
    console.print(
        f"a round: {asked.steps} steps of {asked.accumulation} x {asked.batch_size} examples, the "
        f"longest of {asked.longest} tokens, the mean of {asked.mean_length}; "
        f"{bytes_text(asked.bytes_down)} down, {bytes_text(asked.bytes_up)} up",
        soft_wrap=True,
        highlight=False,
    )
    console.print(_options_table(plan))
    for reason in plan.reasons:
        console.print(f"- {reason}", soft_wrap=True, highlight=False)
    console.print(f"[bold]{_choice(plan)}[/]\n", soft_wrap=True, highlight=False)


def _choice(plan: Plan) -> str:
    if plan.choice is None:
        return "plan: sit out"
    work = plan.choice.work
    return (
        f"plan: top_k={plan.top_k} training.batch_size={work.batch_size} "
        f"training.accumulation={work.accumulation} "
        f"training.recompute={str(work.recompute).lower()}"
        + (f" frozen={work.frozen}" if work.frozen != "full" else "")
        + (f" subset={_subset(work.subset)}" if work.subset else "")
        + (" offload=true" if work.offload else "")
    )


def _subset(subset: Subset) -> str:
    """As it stands in a tier."""
    return f"{{keep: {subset.keep}, left_out: {subset.left_out}}}"


def _options_table(plan: Plan) -> Table:
    """One row for every k."""
    table = Table(
        title="predicted: GB of memory, and seconds of a round", title_justify="left", box=SIMPLE
    )
    for name in ("k", "GB", "weights", "adapter", "activations", "other", "s", "compute", "link"):
        table.add_column(name, justify="right")
    for option in plan.options:
        m = option.memory
        sizes = (m.total, m.weights, m.optimiser, m.saved + m.working, m.slack + m.fixed)
        seconds = (option.seconds, option.compute_seconds, option.link_seconds)
        table.add_row(
            f"{option.top_k}{' *' if option is plan.choice else ''}",
            *(f"{size / 1e9:.2f}" for size in sizes),
            *(f"{s:.3g}" for s in seconds),
        )
    return table


def show_accuracy(
    shape: Shape, constants: Constants, samples: Sequence[Sample], console: Console
) -> None:
    """Print predicted against measured for settings that nothing was fitted to."""
    table = Table(title="held-out settings", title_justify="left", box=SIMPLE)
    for name in (
        "top_k",
        "batch",
        "length",
        "memory_options",
        "MB predicted",
        "measured",
        "error",
        "ms predicted",
        "measured",
        "error",
    ):
        table.add_column(name, justify="right")
    errors = []
    for sample in samples:
        s = sample.setting
        size = memory(shape, s, constants).above_weights
        seconds = step_seconds(shape, s, constants)
        error = size / sample.peak_bytes - 1, seconds / sample.seconds - 1
        errors.append(error)
        table.add_row(
            str(s.top_k),
            str(s.batch_size),
            str(s.length),
            _levers(s),
            f"{size / 1e6:.0f}",
            f"{sample.peak_bytes / 1e6:.0f}",
            f"{error[0]:+.1%}",
            f"{1e3 * seconds:.0f}",
            f"{1e3 * sample.seconds:.0f}",
            f"{error[1]:+.1%}",
        )
    console.print(table)
    console.print(
        f"Memory above the loaded model; {_within(errors, 0, WITHIN_MEMORY)}, "
        f"{_within(errors, 1, WITHIN_TIME)}. Milliseconds of the processor; the clock ran "
        f"{sum(s.wall_seconds for s in samples) / sum(s.seconds for s in samples):.2f} times that.",
        soft_wrap=True,
        highlight=False,
    )


def _levers(setting: Setting) -> str:
    """What saves memory in a setting."""
    smaller = [setting.frozen] if setting.frozen != "full" else []
    return ", ".join([*(["recompute"] if setting.recompute else []), *smaller])


def _within(errors: Sequence[tuple[float, float]], which: int, bar: float) -> str:
    sizes = [abs(error[which]) for error in errors]
    count = sum(size <= bar for size in sizes)
    what = ("memory", "time")[which]
    return f"{what} within {bar:.0%} in {count} of {len(sizes)}, at worst {max(sizes):.1%}"
