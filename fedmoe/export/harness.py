"""lm-evaluation-harness on a run or an export: its own tasks, or one of the rows that we score.

The harness may be in another environment: it reads folders of transformers and PEFT alone.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig, AutoTokenizer

from fedmoe.data.decoded import ends_of
from fedmoe.errors import FedMoEError
from fedmoe.export.evaluated import Evaluated, evaluate
from fedmoe.export.exported import CERTIFICATE
from fedmoe.export.merged import TOP_K
from fedmoe.export.peft import CONFIG
from fedmoe.export.saved import SavedRun
from fedmoe.models.folder import model_folder
from fedmoe.system.files import write_text
from fedmoe.system.waiting import waiting

ROWS = "rows"
"""The task that is made of the rows that `evaluate` scores."""
INSTALL = "pip install 'lm_eval[hf]' peft"
BY_HAND = {"pretrained": "MODEL"}
EXACT_MATCH = {
    "metric": "exact_match",
    "aggregation": "mean",
    "higher_is_better": True,
    "regexes_to_ignore": [r"^\s+|\s+$"],
}
"""As ours, but for spaces inside an answer, which count here."""


@dataclass(frozen=True)
class Subject:
    """A model that the harness loads."""

    tier: str
    source: Path | str
    """The folder or name that `evaluate` scores in its place."""
    arguments: Mapping[str, Any]
    """The harness's `--model_args`."""
    tiers: Sequence[str] = ()

    @property
    def form(self) -> str:
        """How it is loaded."""
        return "peft" if "peft" in self.arguments else "whole model"


@dataclass(frozen=True)
class HarnessScore:
    """The harness's scores of one model on one task."""

    tier: str
    form: str
    task: str
    metrics: Mapping[str, float]
    ours: float | None = None
    """Our exact match on the same rows, where the task is made of them."""
    rows: int = 0
    equal: int = 0
    """Rows on which both agree that an answer is right, or that it is wrong."""


@dataclass(frozen=True)
class Harness:
    """An installed lm-evaluation-harness.

    Example:
        >>> Harness(options="--limit 20").options
        '--limit 20'
    """

    python: Path = field(default_factory=lambda: Path(sys.executable))
    """The Python of its environment."""
    options: str = ""
    """Further options of its command line."""

    def command(self, model: Mapping[str, Any], task: str, include: Path | None) -> list[str]:
        """Return the command that evaluates a model, without the place of its results."""
        said = ",".join(f"{name}={value}" for name, value in model.items())
        place = ["--include_path", str(include)] if include else []
        chosen = ["--model", "hf", "--model_args", said, "--tasks", task, *place]
        return [str(self.python), "-m", "lm_eval", *chosen, *shlex.split(self.options)]

    def check(self, example: Sequence[str]) -> None:
        """Refuse an environment without the harness.

        Raises:
            FedMoEError: with the command line to be run elsewhere.
        """
        look = "import importlib.util as u, sys; sys.exit(u.find_spec('lm_eval') is None)"
        command = [str(self.python), "-c", look]
        try:
            found = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            found = False
        if not found:
            by_hand = shlex.join(["python", *example[1:]])
            raise FedMoEError(
                f"{self.python} has no lm-evaluation-harness; {INSTALL}, or name the Python of an "
                f"environment that has it by --harness-python. By hand there, of an "
                f"exported MODEL:\n  {by_hand}\n"
                "  (--harness-folder FOLDER has the task of the rows)"
            )

    def run(self, command: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return what it says of each task, and of each row of the only one.

        Raises:
            FedMoEError: it failed, with the last line that it said.
        """
        with tempfile.TemporaryDirectory() as folder:
            command = [*command, "--output_path", folder, "--log_samples"]
            with waiting(f"lm-evaluation-harness scores {command[command.index('--tasks') + 1]}"):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            results = [*Path(folder).rglob("results_*.json")]
            if done.returncode or not results:
                said = ([*filter(None, done.stderr.splitlines())] or ["nothing"])[-1]
                raise FedMoEError(f"lm-evaluation-harness failed: {said:.500}")
            found = json.loads(results[0].read_text(encoding="utf-8"))["results"]
            files = sorted(Path(folder).rglob("samples_*.jsonl"))
            lines = files[0].read_text(encoding="utf-8").splitlines() if len(files) == 1 else []
        samples = sorted(map(json.loads, lines), key=lambda sample: sample["doc_id"])
        return found, samples


def in_harness(
    source: Path | str,
    task: str,
    harness: Harness,
    folder: Path | None = None,
    data: Path | str | None = None,
    overrides: Sequence[str] = (),
    *,
    split: Any = None,
    tiers: Sequence[str] = (),
    which: Literal["last", "best"] = "last",
    base: str = "",
) -> list[HarnessScore]:
    """Score a run or an export by lm-evaluation-harness.

    Args:
        source: a run's folder, whose tiers are merged into models first; an exported adapter's or
            model's; or a base model.
        task: a task of the harness; the YAML file of one; or `rows`, a task made of the rows that
            `evaluate` scores, worded with and without the chat template, and compared with ours.
        harness: where it is.
        folder: the place of the task `rows`, to use it by hand; temporary when omitted.
        data: and `overrides`, `split`, `tiers`, `which`, `base`: as in `evaluate`.

    Raises:
        FedMoEError: no harness; it failed; or an adapter in a form that it cannot load.
    """
    if task != ROWS and (data or split or overrides):
        raise FedMoEError(f"--data, --split and settings are for --harness {ROWS} alone")
    if task != ROWS:
        harness.check(harness.command(BY_HAND, task, None))
    elif folder is None:
        harness.check(harness.command(BY_HAND, "fedmoe_rows", Path("FOLDER")))
    found: list[HarnessScore] = []
    with _subjects(source, tiers, which, base) as subjects, tempfile.TemporaryDirectory() as place:
        for subject in subjects:
            if task == ROWS:
                options = {"split": split, "tiers": subject.tiers, "which": which, "base": base}
                named = [*overrides, "evaluation.metric=exact_match"]
                with waiting(f"scoring the rows here at tier {subject.tier!r}"):
                    ours = evaluate(subject.source, data, named, answers=True, **options)
                found += _rows(harness, subject, ours, folder or Path(place))
            else:
                found += _task(harness, subject, task)
    return found


def _task(harness: Harness, subject: Subject, task: str) -> Iterator[HarnessScore]:
    include = Path(task).resolve().parent if task.endswith((".yaml", ".yml")) else None
    name = Path(task).stem if include else task
    results, _ = harness.run(harness.command(subject.arguments, name, include))
    for named, metrics in results.items():
        yield HarnessScore(subject.tier, subject.form, named, _numbers(metrics))


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics by their names without filters that select nothing."""
    named = {name.removesuffix(",none"): value for name, value in metrics.items()}
    return {
        name: float(value)
        for name, value in named.items()
        if isinstance(value, int | float) and "stderr" not in name and name != "sample_len"
    }


def _rows(
    harness: Harness, subject: Subject, ours: Evaluated, folder: Path
) -> Iterator[HarnessScore]:
    """Yield the scores of the task of rows, without and with the chat template."""
    names = write_task(folder, ours, str(subject.arguments["tokenizer"]))
    # A run's models are temporary.
    example = BY_HAND if subject.tiers else subject.arguments
    harness.check(harness.command(example, names[0], folder))
    right = [bool(record["scores"]["exact_match"]) for record in ours.answers]
    for name in names:
        command = harness.command(subject.arguments, name, folder)
        chat = ["--apply_chat_template"] if name.endswith("chat") else []
        results, samples = harness.run([*command, *chat])
        theirs = [bool(sample["exact_match"]) for sample in samples]
        yield HarnessScore(
            subject.tier,
            subject.form,
            name,
            _numbers(results[name]),
            ours=sum(right) / len(right),
            rows=len(right),
            equal=sum(a == b for a, b in zip(right, theirs, strict=False)),
        )


def write_task(folder: Path, ours: Evaluated, tokenizer: str) -> list[str]:
    """Write scored rows as tasks of the harness, and return their names.

    `fedmoe_rows` has the prompts as the model reads them; `fedmoe_rows_chat`, for the harness's
    `--apply_chat_template`, has them bare, where none is a conversation.

    Args:
        folder: gets `fedmoe_rows.jsonl` and a YAML file for each task.
        ours: of one model.
        tokenizer: its folder.
    """
    words: Any = AutoTokenizer.from_pretrained(tokenizer)
    sets = [*ours.sets.values()]
    examples = [example for one in sets for example in one.examples]
    rows = [row for one in sets for row in one.rows]
    records = [
        {"prompt": e.prompt, "text": words.decode([*row.prompt]), "response": e.response}
        for e, row in zip(examples, rows, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "fedmoe_rows.jsonl"
    write_text(data, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records))
    ends = [words.decode([token]) for token in sorted(ends_of(rows, words))]
    fixed = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_target": "{{response}}",
        "generation_kwargs": {
            "until": ends,
            "do_sample": False,
            "max_gen_toks": max(one.max_new_tokens for one in sets),
        },
        "metric_list": [EXACT_MATCH],
    }
    bare = not any(example.conversation for example in examples)
    texts = {"fedmoe_rows": "{{text}}"} | ({"fedmoe_rows_chat": "{{prompt}}"} if bare else {})
    for name, text in texts.items():
        task = {"task": name, "doc_to_text": text} | fixed
        write_text(folder / f"{name}.yaml", json.dumps(task, indent=1, ensure_ascii=False))
    return [*texts]


@contextmanager
def _subjects(
    source: Path | str, tiers: Sequence[str], which: Any, base: str
) -> Iterator[Iterator[Subject]]:
    """Yield what the harness loads: a run's tiers are merged into models, one after another."""
    folder = Path(source).expanduser()
    with tempfile.TemporaryDirectory() as place:
        if (folder / "ledger.jsonl").is_file():
            yield _of_run(SavedRun.open(folder, which), folder, tiers, Path(place))
        else:
            if tiers:
                raise FedMoEError(f"{source} is no run, and so has no tiers; leave --tier out")
            yield iter([_of_folder(source, folder, base)])


def _of_run(saved: SavedRun, run: Path, tiers: Sequence[str], place: Path) -> Iterator[Subject]:
    for tier in tiers or saved.experiment.budget.resolved(saved.model.full_top_k):
        out = place / tier
        with waiting(f"merging tier {tier!r} into a model for the harness"):
            saved.export(out, format="merged", tier=tier, dtype="float32")
        yield Subject(tier, run, _loaded(out, out), (tier,))


def _of_folder(source: Path | str, folder: Path, base: str) -> Subject:
    """Return an exported adapter or model, or a base model."""
    certificate = folder / CERTIFICATE
    facts = json.loads(certificate.read_text(encoding="utf-8")) if certificate.is_file() else {}
    tier = facts.get("tier") or "full"
    if facts.get("writes", "fused") not in ("fused", "merged"):
        raise FedMoEError(
            f"{folder}: the harness loads adapters for PEFT and merged models, not one for "
            f"{facts['reader']}; export with --for peft or --for merged"
        )
    if not (folder / CONFIG).is_file():
        model = model_folder(str(source))
        return Subject(tier, source, _loaded(model, model))
    named = base or json.loads((folder / CONFIG).read_text())["base_model_name_or_path"]
    model = model_folder(named)
    arguments = _loaded(model, folder if (folder / "tokenizer.json").is_file() else model)
    if facts.get("top_k", 0) != facts.get("full_top_k", 0):
        config = AutoConfig.from_pretrained(model)
        name = next(n for n in TOP_K if getattr(config, n, None) == facts["full_top_k"])
        arguments[name] = facts["top_k"]
    return Subject(tier, source, arguments | {"peft": folder})


def _loaded(model: Path | str, tokenizer: Path | str) -> dict[str, Any]:
    # In float32, as we score.
    return {"pretrained": model, "tokenizer": tokenizer, "dtype": "float32"}
