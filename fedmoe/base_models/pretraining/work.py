"""A work folder between two starts: what is in it, and whether that is whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from fedmoe.errors import FedMoEError
from fedmoe.system.files import write_text

LOG, CHECKPOINT = "log.jsonl", "checkpoint.safetensors"
TOKENS, SOURCES = "tokens.npy", "sources.json"
AGAIN = f"delete {TOKENS}, and the corpus is built again"


def damaged(path: Path, found: object, cure: str) -> FedMoEError:
    """The error of a file that cannot be read, on one line."""
    said = " ".join(str(found).split())
    return FedMoEError(f"{path} is damaged ({said}); {cure}")


def tokens(work: Path) -> np.ndarray:
    """The corpus, uint16; read from the file where it is used.

    Raises:
        FedMoEError: the file is damaged.
    """
    path = work / TOKENS
    try:
        found = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, FileNotFoundError) as error:
        raise damaged(path, error, AGAIN) from error
    if found.dtype != np.uint16 or found.ndim != 1:
        raise damaged(path, f"{found.dtype} {found.shape}", AGAIN)
    return found


def sources(work: Path) -> dict[str, dict[str, int]]:
    """Documents, bytes and tokens of each source of the corpus.

    Raises:
        FedMoEError: the file is damaged, or missing.
    """
    path = work / SOURCES
    try:
        return TypeAdapter(dict[str, dict[str, int]]).validate_json(path.read_bytes())
    except (ValueError, FileNotFoundError) as error:
        raise damaged(path, error, AGAIN) from error


def read_log(work: Path) -> list[dict[str, Any]]:
    """What was logged, without a last line that a kill has torn; nothing where there is no log.

    Raises:
        FedMoEError: a line before the last is damaged.
    """
    path, rows = work / LOG, []
    if not path.exists():
        return rows
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append(row | {name: row[name] for name in ("step", "tokens", "loss")})
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                cure = "delete it: the curve of losses begins where training goes on"
                raise damaged(path, f"line {number}: {error!r}", cure) from error
    return rows


def forget_after(step: int, work: Path) -> None:
    """Drop from the log the steps that will be taken, and logged, again.

    Raises:
        FedMoEError: the log is damaged.
    """
    if (work / LOG).exists():
        rows = [row for row in read_log(work) if row["step"] <= step]
        write_text(work / LOG, "".join(json.dumps(row) + "\n" for row in rows))


def steps_done(work: Path) -> int:
    """The step that the checkpoint is of; 0 where there is none.

    Raises:
        FedMoEError: the checkpoint is damaged.
    """
    path = work / CHECKPOINT
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            return int(file.get_tensor("progress")[0])
    except (SafetensorError, OSError) as error:
        cure = "delete it, and training begins at its first step"
        raise damaged(path, error, cure) from error


def load_checkpoint(work: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors; none where there is none."""
    path = work / CHECKPOINT
    return load_file(path) if path.exists() else {}


def save_checkpoint(work: Path, state: Mapping[str, Tensor]) -> None:
    """Replace the checkpoint; one that is half written never has its name."""
    # Not safetensors' own writing to a file, which a kill may leave under a name that nobody knows.
    temporary = work / "checkpoint.tmp"
    with temporary.open("wb") as file:
        file.write(save(dict(state)))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(work / CHECKPOINT)
