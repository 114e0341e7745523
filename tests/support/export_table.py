"""A table of families and engines, from real runs: `python tests/support/export_table.py OUTCOMES`.

The file is what tests wrote under `EXPORT_OUTCOMES`; no outcome is written down here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

from fedmoe.export.engine import ENGINES
from fedmoe.models.families import FAMILIES

COLUMNS = {
    "PEFT": "peft",
    "merged": "merged",
    "per expert": "sglang",
    "GGUF model": "llama.cpp",
    "GGUF adapter": "llama.cpp-lora",
    "vLLM": "vllm, served",
    "vLLM, adapter": "vllm adapter, served",
    "llama.cpp": "llama.cpp, served",
    "llama.cpp, adapter": "llama.cpp-lora, served",
}
"""Each column, by the name under which tests record it."""
SAME = "computes the same"
OPENING = """\
# Exports: families and engines

Each cell is the outcome of a test on a tiny random model of that family, with a random adapter of
experts and attention. To make this page:

```sh
export EXPORT_OUTCOMES=$PWD/outcomes.jsonl
pytest -m slow tests/oracles/test_exports.py tests/parity/test_{vllm,llama_cpp}.py
python tests/support/export_table.py outcomes.jsonl > fedmoe/models/families/engines.md
```

{used}, on a CPU.

- *PEFT* (`--for peft`), *merged* (`--for merged`): the folder, loaded again by PEFT or
  transformers, gives the same logits; *per expert* (`--for sglang`, `vllm`): so do its
  factors, put into the checkpoint by the names of its weights; *GGUF model* and *GGUF adapter*
  (`--for llama.cpp`, `llama.cpp-lora`): so does what `gguf` reads from the file
- *vLLM*, *llama.cpp*: the engine itself serves the merged model, or the base with the adapter, and
  its greedy answers are compared with ours, token for token. Of SGLang and MLX nothing was run.

"""


def table(found: Mapping[tuple[str, str], str]) -> list[str]:
    """Return the families' rows; a long outcome goes below, under a number."""
    notes: list[str] = []
    lines = [
        f"| family | `model_type` | {' | '.join(COLUMNS)} |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for family in FAMILIES.values():
        kind = family.model_type
        cells = [_cell(found.get((kind, c), "not run"), kind, notes) for c in COLUMNS.values()]
        lines.append(f"| {family.name} | `{family.model_type}` | {' | '.join(cells)} |")
    return [*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]


def _cell(outcome: str, kind: str, notes: list[str]) -> str:
    if outcome == SAME:
        return "same"
    if outcome == "not run" or outcome.endswith("equal"):
        return outcome.removesuffix(" answers equal")
    note = re.split(rf", \S+\.\S+|; {kind}:", outcome)[0]  # without the names of its weights
    if note not in notes:
        notes.append(note)
    return f"no [{notes.index(note) + 1}]"


def read(lines: Iterable[str]) -> dict[tuple[str, str], str]:
    """Return the last outcome of each family and form."""
    found = (json.loads(line) for line in lines)
    return {(family, form): outcome for family, form, outcome in found}


def main(outcomes: Path) -> None:
    """Print the page."""
    names = ("torch", "transformers", "peft", "gguf")
    used = [f"{name} {version(name)}" for name in names]
    used += [f"{engine.package} {engine.version}" for engine in ENGINES.values()]
    print(OPENING.replace("{used}", ", ".join(used)), end="")
    print("\n".join(table(read(outcomes.read_text(encoding="utf-8").splitlines()))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
