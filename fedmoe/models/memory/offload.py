"""Places for frozen weights outside a device: main memory, or a file mapped into it."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedmoe.errors import ModelError


def pinned(tensor: Tensor) -> Tensor:
    """Return the tensor in main memory that a GPU copies from without the processor."""
    return tensor.cpu().pin_memory()


def mapped(tensor: Tensor) -> Tensor:
    """Return the tensor in a file that is mapped into memory: pages are read when they are used.

    One that is in such a file already, as transformers loads weights that a checkpoint has in the
    same form and type, is returned as it is; any other is written to a separate file.

    Pages that nothing reads are never in memory, and all others can be given up without being
    written. A separate file is in `TMPDIR`, which should be on a disk; its name is removed at once,
    so that it ends with the process, and with all that were forked from it.

    Raises:
        ModelError: the file cannot be written; the disk may be full.
    """
    if is_mapped(tensor):
        return tensor
    try:
        with TemporaryDirectory(prefix="fedmoe-") as folder:
            path = Path(folder) / "weights.safetensors"
            save_file({"weights": tensor.detach().contiguous()}, path)
            with safe_open(path, "pt") as file:
                return file.get_tensor("weights")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"offload: {tensor.nbytes / 1e9:.2f} GB of frozen weights could not be written to a "
            f"file ({error}); free some disk, or set TMPDIR to a folder with room"
        ) from error


def is_mapped(tensor: Tensor) -> bool:
    """Return whether a tensor is in a mapped file, and nothing was written to it since.

    Without `/proc` (Linux) the answer is no.
    """
    maps = Path("/proc/self/maps")
    if tensor.device.type != "cpu" or not maps.is_file():
        return False
    start = tensor.data_ptr()
    for line in maps.read_text().splitlines():
        span, _, _, _, inode, *_ = line.split(maxsplit=5)
        low, high = (int(x, 16) for x in span.split("-"))
        if low <= start < high:
            return inode != "0" and not _written(start, start + tensor.nbytes)
    return False


def _written(start: int, stop: int) -> bool:
    """Return whether some page of a mapped file has become this process's own, by a write."""
    first, last = start // mmap.PAGESIZE, -(-stop // mmap.PAGESIZE)
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(8 * first)
        pages = np.frombuffer(file.read(8 * (last - first)), dtype=np.uint64)
    there, of_file = pages >> np.uint64(62) != 0, pages >> np.uint64(61) & np.uint64(1) != 0
    return bool((there & ~of_file).any())


def read_soon(tensor: Tensor) -> None:
    """Have the system read a mapped tensor in the background; it returns at once."""
    start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    _advise(start // mmap.PAGESIZE * mmap.PAGESIZE, stop, "MADV_WILLNEED")


def give_up(tensor: Tensor) -> None:
    """Take a mapped tensor's pages out of this process's memory; they are read again when used.

    Nothing may have written to it. The system keeps them in its own cache while there is room.
    """
    start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    whole = (-(-start // mmap.PAGESIZE), stop // mmap.PAGESIZE)  # neighbours share the pages around
    _advise(whole[0] * mmap.PAGESIZE, whole[1] * mmap.PAGESIZE, "MADV_DONTNEED")


def _advise(start: int, stop: int, advice: str) -> None:
    """Tell the system of addresses; Python's own `madvise` takes none that it did not map."""
    if stop > start and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), getattr(mmap, advice))
