"""One file per round, of tensors and facts about them; checked, written whole, the newest kept."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedmoe.errors import CheckpointError
from fedmoe.system.checksums import checksum
from fedmoe.system.files import write_bytes

if TYPE_CHECKING:
    from fedmoe.adapter import Layout

CHECKPOINTS = 2
"""Checkpoints of a run: the one before the newest is there if that one is damaged."""


NAMES = {torch.int64: "I64", torch.float64: "F64", torch.float32: "F32"}
"""What safetensors calls the types in such files, in the order in which it writes them."""


class DamagedError(CheckpointError):
    """A file that was cut short or changed since it was written."""


@dataclass(frozen=True)
class RoundFiles:
    """The files `<folder>/<name>-<round>.safetensors`, of which the newest `keep` are kept."""

    folder: Path
    name: str
    keep: int

    def path(self, round: int) -> Path:
        """Return the path of a round's file."""
        return self.folder / f"{self.name}-{round}.safetensors"

    def rounds(self) -> list[int]:
        """Return the rounds that have a file, in order."""
        form = re.compile(rf"{re.escape(self.name)}-(\d+)\.safetensors")
        found = (form.fullmatch(path.name) for path in self.folder.glob(f"{self.name}-*"))
        return sorted(int(match[1]) for match in found if match)

    def write(
        self, round: int, layout: Layout, tensors: Mapping[str, Tensor], **facts: Any
    ) -> None:
        """Write a round's file, and remove all but the newest.

        Raises:
            CheckpointError: it cannot be written; the files before it stay.
        """
        path, about = self.path(round), json.dumps({"layout": layout.digest, **facts})
        metadata = {"about": about, "checksum": _checksum(path.name, about, tensors)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(path, *tensor_parts(tensors, metadata))
            self.remove(but=self.keep)
        except OSError as error:
            why = error.strerror or error
            raise CheckpointError(f"{error.filename or path}: cannot be written: {why}") from error

    def read(self, round: int, layout: Layout) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and facts of a round.

        Raises:
            DamagedError: they cannot be read, or are not those that were written for this round.
            CheckpointError: they belong to another adapter.
        """
        path = self.path(round)
        tensors, metadata = read_tensors(path)
        about = metadata.get("about", "")
        if metadata.get("checksum") != _checksum(path.name, about, tensors):
            raise DamagedError(f"{path} is damaged: its checksum is not that of its values")
        facts = json.loads(about)
        if facts["layout"] != layout.digest:
            raise CheckpointError(
                f"{path} is of another adapter: model, rank, alpha or strategy have changed"
            )
        return tensors, facts

    def remove(self, but: int = 0) -> None:
        """Remove all files but the newest few."""
        for old in self.rounds()[: -but or None]:
            self.path(old).unlink(missing_ok=True)


def tensor_parts(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[bytes | memoryview, ...]:
    """Return the parts of a safetensors file, without a copy of any value.

    The same bytes for the same values: safetensors' `save`, which copies them all, writes the
    tensors in this order, and its metadata in another order each time.
    """
    order = sorted(tensors.items(), key=lambda item: ([*NAMES].index(item[1].dtype), item[0]))
    header, stop = dict[str, Any](__metadata__=dict(metadata)), 0
    for name, tensor in order:
        start, stop = stop, stop + tensor.nbytes
        where = {"shape": [*tensor.shape], "data_offsets": [start, stop]}
        header[name] = {"dtype": NAMES[tensor.dtype], **where}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-len(text) % 8 + len(text))
    return len(text).to_bytes(8, "little"), text, *(_bytes(tensor) for _, tensor in order)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        DamagedError: it cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def written_identity(folder: Path) -> dict[str, str]:
    """Read the identity of the run in a folder; {} if it is not written there."""
    try:
        return json.loads((folder / "environment.json").read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # of an older version, or gone


def _checksum(name: str, about: str, tensors: Mapping[str, Tensor]) -> str:
    parts: list[bytes | memoryview] = [f"{name}\0{about}".encode()]
    for key, tensor in sorted(tensors.items()):
        parts += f"\0{key} {tuple(tensor.shape)} {tensor.dtype}\0".encode(), _bytes(tensor)
    return checksum(parts)


def _bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's values in order, in place if they are in order already."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
