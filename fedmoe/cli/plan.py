"""`fedmoe plan`: how many experts a machine affords."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmoe.cli import arguments
from fedmoe.cli.terminal import print_table, say, table, terminal
from fedmoe.errors import FedMoEError

if TYPE_CHECKING:
    from rich.console import Console

    from fedmoe.budget.plan import Plan
    from fedmoe.budget.shape import Setting
    from fedmoe.runs.machine_plan import Accuracy, MachinePlan

WITHIN_MEMORY, WITHIN_TIME = 0.10, 0.20


@click.command()
@arguments.configured
@click.option(
    "--device",
    multiple=True,
    metavar="FILE",
    help="Plan for a device's profile, from the config alone; may be given again.",
)
@click.option("--measure", is_flag=True, help="Compare the predictions with further real steps.")
def plan(config: Path, overrides: tuple[str, ...], device: tuple[str, ...], measure: bool) -> None:
    """Predict memory and seconds at every k; choose a k.

    Plans for the devices given; without any for those of the config's automatic budget; without
    those for this machine, with a few real steps. The largest k that fits is chosen, with reasons.

    \b
    Examples:
      fedmoe plan quickstart
      fedmoe plan quickstart --measure           (and how far predictions are off)
      fedmoe plan olmoe_dolly --device devices/l40s.yaml
    """
    from functools import partial

    from fedmoe.budget import Auto
    from fedmoe.config import load_experiment
    from fedmoe.config.load import load
    from fedmoe.devices import Device
    from fedmoe.runs.machine_plan import plan_device, plan_here, plan_tiers
    from fedmoe.system.shipped import find_beside

    arguments.one_thread()
    e, console = load_experiment(config, overrides), terminal()
    tiers = isinstance(e.budget, Auto) and e.devices and not device
    if measure and (device or tiers):
        raise FedMoEError(
            "--measure is about this machine; the plan is for profiles of other devices. Leave out "
            "--device, and set budget.name=levels where the config plans for devices"
        )
    for path in device:
        show_plan(plan_device(e, load(Device, find_beside(path, Path()))), console)
    if isinstance(e.budget, Auto) and tiers:
        for tier, planned in plan_tiers(e, e.budget).items():
            console.print(f"tier [bold]{tier}[/]")
            show_plan(planned, console)
    elif not device:
        with _measuring() as progress:
            planned, accuracy = plan_here(
                e, partial(say, console), accuracy=measure, progress=progress
            )
        if accuracy:
            show_accuracy(accuracy, console)
        show_plan(planned, console)


@contextmanager
def _measuring() -> Iterator[Callable[[int, int], None]]:
    """Show on stderr how many measurements are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    # Without a thread that draws: measurements fork.
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
    )
    with bar:
        task = bar.add_task("loading the model and the data", total=None)
        bar.refresh()

        def told(done: int, total: int) -> None:
            said = "measuring real steps"
            bar.update(task, description=said, completed=done, total=total, refresh=True)

        yield told


def show_plan(planned: MachinePlan, console: Console) -> None:
    """Print the machine, a row for every k, and the reasons."""
    from fedmoe.report.units import bytes_text

    machine, plan, work = planned.machine, planned.plan, planned.work
    where = "GPU" if machine.on_gpu else f"processor, {machine.threads} thread(s)"
    disk = machine.free_disk_bytes
    say(
        console,
        f"[bold]{machine.label}[/] ({where}): {bytes_text(machine.free_bytes)} free of "
        f"{bytes_text(machine.total_bytes)}, {bytes_text(round(plan.most_bytes))} may be used"
        + (f"; disk {bytes_text(disk)} free" if disk is not None else ""),
    )
    say(
        console,
        f"a round{f' of {work.clients} clients in a pass' if work.clients > 1 else ''}: "
        f"{work.steps} steps of {work.accumulation} x {work.batch_size} examples, the "
        f"longest of {work.longest} tokens, the mean of {work.mean_length}; "
        f"{bytes_text(work.bytes_down)} down, {bytes_text(work.bytes_up)} up",
    )
    rows = []
    for option in plan.options:
        m = option.memory
        sizes = (m.total, m.weights, m.optimiser, m.saved + m.working, m.slack + m.fixed)
        seconds = (option.seconds, option.compute_seconds, option.link_seconds)
        k = f"{option.top_k}{' *' if option is plan.choice else ''}"
        rows.append((k, *(f"{x / 1e9:.2f}" for x in sizes), *(f"{x:.3g}" for x in seconds)))
    columns = ("k", "GB", "weights", "adapter", "activations", "other", "seconds", "compute")
    title = "predicted: GB of memory, and seconds of a round"
    print_table(console, table(title, (*columns, "transfer"), rows))
    for reason in plan.reasons:
        say(console, f"- {reason}")
    say(console, f"[bold]plan: {chosen(plan)}[/]\n")


def chosen(plan: Plan) -> str:
    """Return the choice of a plan, as settings of a tier and of the training."""
    if plan.choice is None:
        return "sit out"
    work = plan.choice.work
    settings = [
        f"top_k={plan.top_k} training.batch_size={work.batch_size}",
        f"training.accumulation={work.accumulation}",
        f"training.recompute={str(work.recompute).lower()}",
    ]
    if work.frozen != "full":
        settings.append(f"frozen={work.frozen}")
    if work.subset:
        settings.append(f"subset={{keep: {work.subset.keep}, left_out: {work.subset.left_out}}}")
    if work.offload:
        settings.append("offload=true")
    return " ".join(settings)


def show_accuracy(accuracy: Accuracy, console: Console) -> None:
    """Print predicted against measured for settings that nothing was fitted to."""
    from fedmoe.budget.model import memory, step_seconds

    rows, errors = [], []
    for sample in accuracy.samples:
        s = sample.setting
        size = memory(accuracy.shape, s, accuracy.constants).above_weights
        seconds = step_seconds(accuracy.shape, s, accuracy.constants)
        error = size / sample.peak_bytes - 1, seconds / sample.seconds - 1
        errors.append(error)
        setting = map(str, (s.top_k, s.batch_size, s.length, _memory_options(s)))
        megabytes = (f"{size / 1e6:.0f}", f"{sample.peak_bytes / 1e6:.0f}", f"{error[0]:+.1%}")
        times = (f"{1e3 * seconds:.0f}", f"{1e3 * sample.seconds:.0f}", f"{error[1]:+.1%}")
        rows.append((*setting, *megabytes, *times))
    columns = ("top_k", "batch", "length", "memory options", "MB predicted", "MB measured")
    columns += ("MB off by", "ms predicted", "ms measured", "ms off by")
    print_table(console, table("held-out settings", columns, rows, 1))
    memories, times = zip(*errors, strict=True)
    wall = sum(s.wall_seconds for s in accuracy.samples) / sum(s.seconds for s in accuracy.samples)
    say(
        console,
        f"Memory above the loaded model; {_within(memories, 'memory', WITHIN_MEMORY)}, "
        f"{_within(times, 'time', WITHIN_TIME)}. Milliseconds of the processor; the clock ran "
        f"{wall:.2f} times that.",
    )


def _memory_options(setting: Setting) -> str:
    smaller = [setting.frozen] if setting.frozen != "full" else []
    return ", ".join([*(["recompute"] if setting.recompute else []), *smaller])


def _within(errors: Sequence[float], name: str, bar: float) -> str:
    sizes = [abs(error) for error in errors]
    count = sum(size <= bar for size in sizes)
    return f"{name} within {bar:.0%} in {count} of {len(sizes)}, at worst {max(sizes):.1%}"
