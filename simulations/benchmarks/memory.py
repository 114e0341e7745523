"""Measurement of memory: of arrays, of tensors, of a process and its descendants."""

from __future__ import annotations

import ctypes
import gc
import json
import tempfile
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Self

import psutil
import torch
from torch.profiler import ProfilerActivity, profile


def array_bytes(step: Callable[[], object]) -> int:
    """Return the most bytes that numpy's arrays and Python's objects made in `step` hold."""
    tracemalloc.start()
    step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def tensor_bytes(step: Callable[[], object], device: str = "cpu") -> int:
    """Return the most bytes that tensors made in `step` hold at one time.

    From torch's profiler on a processor, from its allocator on a GPU.
    """
    if device != "cpu":
        step()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    return max(accumulate((e["args"]["Bytes"] for e in changes), initial=0))


class Peak:
    """The most memory that a process and its descendants use while a block runs.

    Proportional set sizes are summed: a page that several processes share counts once.
    """

    def __init__(self, pid: int | None = None, seconds: float = 0.02) -> None:
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed, and would reuse it
        self.process, self.seconds, self.bytes = psutil.Process(pid), seconds, 0
        self.before, self.ended = self.now(), threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def now(self) -> int:
        """Return the bytes in use; a process that has gone uses none."""
        total = 0
        with suppress(psutil.Error):
            for process in (self.process, *self.process.children(recursive=True)):
                with suppress(psutil.Error):
                    total += process.memory_full_info().pss
        return total

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.ended.wait(self.seconds):
            self.bytes = max(self.bytes, self.now())
