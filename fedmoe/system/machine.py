"""The memory and processors that this process may use, and what kind of processor they are."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from fedmoe.system.control_groups import ROOT, digits, folders, number, table, text

VECTORS = {"AVX512": {"avx512vl", "avx512bw", "avx512dq", "fma"}, "AVX2": {"avx2", "fma"}}
"""The kernels of torch 2.13 for x86, and what a processor must offer for them; the first counts."""


def main_memory(root: Path = ROOT) -> tuple[int, int]:
    """Return the free and total bytes of main memory, the least that any control group leaves.

    A group's file cache that was not used lately counts as free, as the kernel counts its own.
    """
    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    for limit, used in _memory_groups(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return free, total


def num_threads(root: Path = ROOT) -> int:
    """Count the processors for this process: its affinity, or less by a control group's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = [count or 1]
    for folder in folders(root, "cpu"):
        words = text(folder / "cpu.max").split()
        v1 = number(folder / "cpu.cfs_quota_us"), number(folder / "cpu.cfs_period_us")
        quota, period = (digits(w) for w in words) if len(words) == 2 else v1
        if quota and period:
            quotas.append(max(1, quota // period))
    return min(quotas)


def processor(capability: str = "", root: Path = ROOT) -> str:
    """Name the kind of processor, on which the bits of torch's results depend.

    Args:
        capability: which of its kernels torch uses, where torch is there to say so; else it is
            found out by torch's own rule, without the seconds that importing it takes.
        root: under which `proc` is found.

    Returns:
        Architecture, vendor and kernels, as `x86_64 GenuineIntel AVX512`.
    """
    lines = (line.partition(":") for line in text(root / "proc/cpuinfo").splitlines())
    facts = {name.strip(): value.strip() for name, _, value in lines}
    vendor = facts.get("vendor_id") or facts.get("CPU implementer") or platform.processor()
    capability = capability or _kernels(set(facts.get("flags", "").split()))
    return " ".join(filter(None, [platform.machine(), vendor, capability]))


def _kernels(flags: set[str]) -> str:
    named = os.environ.get("ATEN_CPU_CAPABILITY", "")
    if named in ("avx512", "avx2", "default"):
        return named.upper()
    return next((name for name, needed in VECTORS.items() if needed <= flags), "DEFAULT")


def _memory_groups(root: Path) -> list[tuple[int, int]]:
    """Limit and use of every control group that holds this process and has a limit."""
    groups = []
    for folder in folders(root, "memory"):
        stat = table(folder / "memory.stat")
        for most, now, idle in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = number(folder / most), number(folder / now)
            if limit is not None and used is not None:
                groups.append((limit, used - stat.get(idle, 0)))
    return groups
