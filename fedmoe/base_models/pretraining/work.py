"""The files of a work folder between two starts of pretraining, and whether they are whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from fedmoe.errors import FedMoEError
from fedmoe.system.files import write_text

LOG, CHECKPOINT = "log.jsonl", "checkpoint.safetensors"
TOKENS, SOURCES = "tokens.npy", "sources.json"
REBUILD = f"delete {TOKENS}, and the corpus is built again"


@contextmanager
def reading(path: Path, cure: str) -> Iterator[None]:
    """Report a file that cannot be read on one line, with what to do about it.

    Raises:
        FedMoEError: the block failed, in whatever way.
    """
    try:
        yield
    except Exception as error:  # tokenizers 0.23 and safetensors 0.8 raise nothing more special
        reason = " ".join(str(error).split())
        raise FedMoEError(f"{path} is damaged ({reason}); {cure}") from error


def tokens(work: Path) -> np.ndarray:
    """Return the corpus, uint16; it is read from the file where it is used.

    Raises:
        FedMoEError: the file is damaged.
    """
    with reading(work / TOKENS, REBUILD):
        found = np.load(work / TOKENS, mmap_mode="r")
        if found.dtype != np.uint16 or found.ndim != 1:
            raise ValueError(f"{found.dtype} {found.shape}")
        return found


def sources(work: Path) -> dict[str, dict[str, int]]:
    """Return documents, bytes and tokens of each source of the corpus.

    Raises:
        FedMoEError: the file is damaged, or missing.
    """
    with reading(work / SOURCES, REBUILD):
        kind = TypeAdapter(dict[str, dict[str, int]])
        return kind.validate_json((work / SOURCES).read_bytes())


def read_log(work: Path) -> list[dict[str, Any]]:
    """Return the logged rows, without a last line that a kill has torn; none without a log.

    Raises:
        FedMoEError: a line before the last is damaged.
    """
    path, rows = work / LOG, []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append(row | {name: row[name] for name in ("step", "tokens", "loss")})
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise FedMoEError(
                    f"{path} is damaged (line {number}: {error!r}); delete it: the curve of losses "
                    "then begins where training resumes"
                ) from error
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
    """Return the step that the checkpoint was written at; 0 where there is none.

    Raises:
        FedMoEError: the checkpoint is damaged.
    """
    path = work / CHECKPOINT
    if not path.exists():
        return 0
    cure = "delete it, and training begins at its first step"
    with reading(path, cure), safe_open(path, "pt") as file:
        return int(file.get_tensor("progress")[0])


def load_checkpoint(work: Path) -> dict[str, Tensor]:
    """Return the checkpoint's tensors; none where there is none."""
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
