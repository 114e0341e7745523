"""Measurements of real steps: peak memory above the loaded model, and seconds."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedmoe.budget.replan import ran_out_of_memory
from fedmoe.budget.shape import Setting
from fedmoe.errors import ModelError
from fedmoe.models.memory.stored import quantised
from fedmoe.system.workforce import Done, Job, Lost, Workforce

if TYPE_CHECKING:
    from fedmoe.models.memory.stored import Frozen

Step = Callable[[Setting], Callable[[], object]]
"""Prepares training at a setting; the result makes one step, optimiser included."""
LONGEST_SECONDS = 600.0
TURNS = 3
TURNS_SECONDS = 20.0
"""After this long no further turn begins: where a step is slow, a few make a good sample."""
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Sample:
    """One setting as it was measured."""

    setting: Setting
    peak_bytes: int
    """Above the loaded model."""
    seconds: float
    """The median of a step: processor time where it computes on one thread, so that
    other programs beside it do not count; else of the clock."""
    wall_seconds: float
    """Seconds on the clock."""


def measure(
    step: Step, setting: Setting, repeats: int, device: torch.device, weight_bytes: int
) -> Sample:
    """Make `1 + repeats` steps at `setting`, the first to warm up.

    `weight_bytes` are the model's, which do not count; on a processor they are not counted anyway.

    On a processor a forked process makes them: what earlier steps left in the allocator's hands
    would hide what this one needs. Fork before anything has computed on more than one thread.

    Raises:
        MemoryError, torch.OutOfMemoryError: memory ran out; or the forked process was killed, as
            the system does when it is short of memory.
        ModelError: the step failed, with its reason; or took longer than ten minutes.
    """
    if device.type == "cuda":
        return _on_gpu(step, setting, repeats, device, weight_bytes)
    force = Workforce((step, setting, repeats), 1, job_seconds=LONGEST_SECONDS, most_deaths=1)
    try:
        (outcome,) = force.carry_out([Job(0, _in_child, None, "a step")])
    finally:
        force.close()
    what = f"a step with {setting} could not be measured"
    match outcome:
        case Lost(ended_by="SIGKILL"):
            said = "its process was killed; the system may have been out of memory"
            raise MemoryError(f"{what}: {said}")
        case Lost():
            raise ModelError(f"{what}: its process ended with {outcome.ended_by}")
        case Done(value=MemoryError() as error):
            raise MemoryError(f"{what}: {error}")
        case Done(value=str(said)):
            raise ModelError(f"{what}: {said}")
    peak, seconds, wall = outcome.value
    return Sample(setting, peak, seconds, wall)


def measure_in_turns(
    take: Callable[[Setting], Sample],
    settings: Sequence[Setting],
    turns: int = TURNS,
    seconds: float = TURNS_SECONDS,
) -> list[Sample]:
    """Return one sample per setting: medians over turns in which `take` measures each once.

    A machine changes its speed by the minute: in turns all settings see the same of it. A turn
    begins while less than `seconds` are spent; the first always does.
    """
    started, found = time.monotonic(), [[take(setting) for setting in settings]]
    while len(found) < turns and time.monotonic() - started < seconds:
        found.append([take(setting) for setting in settings])
    return [_middle(samples) for samples in zip(*found, strict=True)]


def _middle(samples: Sequence[Sample]) -> Sample:
    peaks, seconds, wall = (
        [getattr(s, name) for s in samples] for name in ("peak_bytes", "seconds", "wall_seconds")
    )
    median = statistics.median
    return Sample(samples[0].setting, round(median(peaks)), median(seconds), median(wall))


def _in_child(
    measured: tuple[Step, Setting, int], _: None
) -> tuple[int, float, float] | MemoryError | str:
    step, setting, repeats = measured
    try:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # else freed memory of the parent serves the step
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before = _status("VmRSS")
        go = step(setting)
        go()
        own, wall = zip(*(_timed(go) for _ in range(repeats)), strict=True)
        one_thread = torch.get_num_threads() == 1
        seconds = statistics.median(own if one_thread else wall)
        return _status("VmHWM") - before, seconds, statistics.median(wall)
    except Exception as error:  # as text: not every exception can be pickled
        said = str(error) or type(error).__name__
        return MemoryError(said) if ran_out_of_memory(error) else said


def _on_gpu(
    step: Step, setting: Setting, repeats: int, device: torch.device, weight_bytes: int
) -> Sample:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    go = step(setting)
    go()
    wall = []
    for _ in range(repeats):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        go()
        torch.cuda.synchronize(device)
        wall.append(time.perf_counter() - started)
    # Allocated, not reserved: where memory is short torch gives back what it holds unused.
    peak = torch.cuda.max_memory_allocated(device) - weight_bytes
    return Sample(setting, peak, statistics.median(wall), statistics.median(wall))


def restoring_seconds(weights: Tensor, frozen: Frozen, repeats: int = 5) -> float:
    """Return the seconds to restore one frozen value from its code, a median over `repeats`.

    As in training: of one expert after another, on a GPU of all experts of a layer (experts, out,
    in) at once.
    """
    held, on_gpu = quantised(weights.detach(), frozen), weights.is_cuda

    def go() -> None:
        for experts in [slice(0, len(weights))] if on_gpu else range(len(weights)):
            _ = held[experts]
        if on_gpu:
            torch.cuda.synchronize(weights.device)

    go()
    own, wall = zip(*(_timed(go) for _ in range(repeats)), strict=True)
    one_thread = torch.get_num_threads() == 1 and not on_gpu
    return statistics.median(own if one_thread else wall) / weights.numel()


def _timed(go: Callable[[], object]) -> tuple[float, float]:
    """Return the processor and wall seconds of a call."""
    own, wall = time.process_time(), time.perf_counter()
    go()
    return time.process_time() - own, time.perf_counter() - wall


def _status(field: str) -> int:
    """A figure of this process as the kernel tells it, bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0
