"""The free resources of a machine: memory, processors, disk, link."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import torch

from fedmoe.devices import Device
from fedmoe.system.control_groups import ROOT
from fedmoe.system.machine import main_memory, num_threads

HOST = "this machine"
GPU_RUNTIME_BYTES = 650 * 10**6
"""Bytes that CUDA itself takes of a GPU, as measured on an H100 (CUDA 13)."""
PROCESS_BYTES = 500 * 10**6
"""Bytes that Python and its libraries take in a process on a processor: assumed."""


@dataclass(frozen=True)
class Link:
    """A connection to the server."""

    downlink_bytes_per_second: float
    uplink_bytes_per_second: float
    latency_seconds: float = 0.0

    def seconds(self, bytes_down: float, bytes_up: float) -> float:
        """The time of a round's two messages."""
        down = bytes_down / self.downlink_bytes_per_second
        return self.latency_seconds + down + bytes_up / self.uplink_bytes_per_second


@dataclass(frozen=True)
class Machine:
    """The resources that training can use."""

    label: str
    free_bytes: int
    """Bytes of the memory that it computes in: a GPU's, or main memory."""
    total_bytes: int
    on_gpu: bool
    threads: int
    free_disk_bytes: int | None = None
    link: Link | None = None
    """None where nobody has said how fast it is: messages then count as instant."""
    flops: float | None = None
    """FLOP/s in training, where that is stated and need not be measured."""
    offload_bytes: int | None = None
    """Room for frozen weights that it does not compute in: main memory beside a GPU, else the disk
    of `TMPDIR`. None where nobody has looked: a profile does not say."""

    @classmethod
    def of_device(cls, device: Device) -> Machine:
        """A profile as a machine; nothing is probed.

        The memory that the maker states is taken to be free but for the runtime's own. A profile
        does not say whether it is a GPU: one of more than 10 TFLOP/s is taken for one.
        """
        on_gpu = device.peak_flops > 1e13
        own = GPU_RUNTIME_BYTES if on_gpu else PROCESS_BYTES
        return cls(
            label=device.label or "device",
            free_bytes=max(0, device.memory_bytes - own),
            total_bytes=device.memory_bytes,
            on_gpu=on_gpu,
            threads=1,
            link=Link(
                device.downlink_bytes_per_second,
                device.uplink_bytes_per_second,
                device.latency_seconds,
            ),
            flops=device.effective_flops,
        )


def probe(
    device: torch.device, link: Link | None = None, folder: Path | str = ".", root: Path = ROOT
) -> Machine:
    """Return the resources of this machine that are free now.

    All is measured but the link, which is the operator's word (`budget.downlink_bytes_per_second`
    and `uplink_bytes_per_second`, in a node's own overrides). A node cannot measure it: Flower
    fetches a task and delivers its reply in the SuperNode, before and after the client's code runs,
    and that code sees neither moment.

    Args:
        folder: on the disk that runs are written to.
        root: under which `proc` and `sys` lie.
    """
    disk = shutil.disk_usage(folder).free
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # What torch holds in reserve for itself can serve the next step too.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        name = torch.cuda.get_device_name(device)
        beside = main_memory(root)[0]
        return Machine(name, free, total, True, num_threads(root), disk, link, offload_bytes=beside)
    (free, total), beside = main_memory(root), shutil.disk_usage(gettempdir()).free
    return Machine(HOST, free, total, False, num_threads(root), disk, link, offload_bytes=beside)
