"""The consumer's side of a proof: logits of an exported folder, by its own library.

`python -m fedmoe.export.reload REQUEST` computes them in a fresh process.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedmoe.errors import ModelError
from fedmoe.export.gguf_file import LORA, MODEL, factors_of, read_gguf
from fedmoe.export.merged import SINGLE, Merge, merged_config
from fedmoe.models.build import skeleton
from fedmoe.models.folder import opened
from fedmoe.models.tasks import TaskBatch, TaskForm, task_of
from fedmoe.models.tasks.task import Sample

FIELDS = ("input_ids", "valid", "positions", "prompt_lengths")
ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class Request:
    """A folder to load, and the way."""

    folder: str
    writes: str
    """The form of the export; see `formats.Format.writes`."""
    base: str
    """The folder of the base, which an adapter is put on."""
    model_type: str
    eager: bool
    """True if transformers dispatches on the family's experts: then by its plain loop."""


@torch.no_grad()
def logits_of(request: Request, batches: Sequence[TaskBatch]) -> list[Tensor]:
    """Return the logits (targets, vocabulary) that the consumer computes for each batch.

    An adapter with factors per expert is merged into the checkpoint by the names of its weights,
    which is how engines read it, and transformers computes with the result.
    """
    form = task_of(request.model_type)
    if request.writes in REBUILT:
        with tempfile.TemporaryDirectory() as folder:
            REBUILT[request.writes](Path(request.base), Path(request.folder), Path(folder))
            model = _load(form, folder, request)
    else:
        source = request.folder if request.writes == "merged" else request.base
        model = _load(form, source, request)
    if request.writes == "fused":
        model = PeftModel.from_pretrained(model, request.folder)
    return [form.own_logits(model.eval(), batch).float() for batch in batches]


def _load(form: TaskForm, folder: str, request: Request) -> Any:
    options = {"experts_implementation": "eager"} if request.eager else {}
    with opened(folder) as place:
        model, info = form.auto.from_pretrained(
            place, dtype=torch.float32, output_loading_info=True, **options
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"the export lacks {len(missing)} weights, such as {missing[0]}")
    return model


def _weights_of(base: Path) -> dict[str, Tensor]:
    files = [path for path in base.glob("*.safetensors") if not path.name.startswith("adapter")]
    return {name: weight for path in files for name, weight in load_file(path).items()}


def _merge_by_name(base: Path, adapter: Path, out: Path) -> None:
    """Write the base's checkpoint plus `alpha / r * B A`, weight by weight, into a folder."""
    weights = _weights_of(base)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    scale, factors = settings["lora_alpha"] / settings["r"], load_file(adapter / ADAPTER)
    for name, a in factors.items():
        if name.endswith(".lora_A.weight"):
            path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = factors[name.replace(".lora_A.", ".lora_B.")]
            weights[f"{path}.weight"] = weights[f"{path}.weight"].float() + scale * (b @ a)
    save_file(weights, out / SINGLE, {"format": "pt"})
    shutil.copy(base / "config.json", out)


def _from_gguf(base: Path, export: Path, out: Path) -> None:
    """Write what a model's GGUF file holds as a checkpoint: its weights, and its k."""
    module = skeleton(str(base))
    merge = Merge(base=module, changes=[], scale=1.0, factors={}, source=base)
    top_k, weights = read_gguf(export / MODEL, module, merge.weights())
    save_file({n: w.contiguous() for n, w in weights.items()}, out / SINGLE, {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    changed = merged_config(config, config["num_experts_per_tok"], top_k, True)
    (out / "config.json").write_text(json.dumps(changed))


def _from_gguf_adapter(base: Path, export: Path, out: Path) -> None:
    """Write the base's checkpoint plus the changes that an adapter's GGUF file holds."""
    module = skeleton(str(base))
    weights = _weights_of(base)
    for name, change in factors_of(export / LORA, module, weights):
        weights[name] = weights[name].float() + change
    save_file({n: w.contiguous() for n, w in weights.items()}, out / SINGLE, {"format": "pt"})
    shutil.copy(base / "config.json", out)


REBUILT = {"experts": _merge_by_name, "gguf": _from_gguf, "gguf-lora": _from_gguf_adapter}
"""By form: writes a checkpoint for transformers of the base and the export."""


def in_fresh_process(request: Request, batches: Sequence[TaskBatch]) -> list[Tensor]:
    """Return what `logits_of` gives in a process of its own.

    Raises:
        ModelError: it failed, with the last line that it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        tensors = {f"{n}.{f}": getattr(b, f) for n, b in enumerate(batches) for f in FIELDS}
        save_file({k: v.contiguous() for k, v in tensors.items()}, Path(folder, "batches"))
        Path(folder, "request.json").write_text(json.dumps(asdict(request)))
        command = [sys.executable, "-m", "fedmoe.export.reload", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or "nothing").splitlines()[-1]
            raise ModelError(f"the exported folder cannot be loaded again: {said:.500}")
        found = load_file(Path(folder, "logits"))
    return [found[str(number)] for number in range(len(batches))]


def main(folder: Path) -> None:
    """Answer the request in a folder."""
    request = Request(**json.loads((folder / "request.json").read_text()))
    stored = load_file(folder / "batches")
    number = len({key.split(".")[0] for key in stored})
    batches = [Sample(*(stored[f"{n}.{f}"] for f in FIELDS)) for n in range(number)]
    logits = logits_of(request, batches)
    save_file({str(n): one.contiguous() for n, one in enumerate(logits)}, folder / "logits")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
