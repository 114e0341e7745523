"""Places for frozen weights outside a device: main memory, or a file mapped into it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedmoe.errors import ModelError


def pinned(tensor: Tensor) -> Tensor:
    """Return the tensor in main memory that a GPU copies from without the processor."""
    return tensor.cpu().pin_memory()


def mapped(tensor: Tensor) -> Tensor:
    """Return the tensor in a separate file that is mapped into memory: pages are read when used.

    Pages that nothing reads are never in memory, and all others can be given up without being
    written. The file is in `TMPDIR`, which should be on a disk; its name is removed at once, so
    that it ends with the process, and with all that were forked from it.

    Raises:
        ModelError: the file cannot be written; the disk may be full.
    """
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
