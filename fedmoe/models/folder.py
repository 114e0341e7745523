"""A model's folder or Hub id: found, opened without its code, and refused for what it lacks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedmoe.errors import ModelError
from fedmoe.system.files import expanded

MINI = "mini"
ADAPTER = "adapter_config.json"
FURTHER = re.compile(r"(^|\.)(mtp|nextn)(\.|_|$)")
"""Names of heads that guess further tokens, which published models bring and few classes have."""
LOADABLE = {"mxfp4"}
"""Quantised forms that transformers gives plain weights of."""
UNREACHABLE = {"ConnectionError", "ConnectError", "Timeout", "TimeoutException"}
"""Errors of the libraries under the Hub's, by name."""
MOST_SHOWN = 3
"""Weights that a fault lists."""


def model_folder(path: str) -> str:
    """Return the folder of the built-in model for `mini`; any other `path`, with `~` written out.

    >>> model_folder("allenai/OLMoE-1B-7B-0924")
    'allenai/OLMoE-1B-7B-0924'
    """
    return str(files("fedmoe.models") / "mini") if path == MINI else str(expanded(path))


@contextmanager
def opened(path: str, setting: str = "model.path") -> Iterator[str]:
    """Yield the folder, or the Hub id, from which transformers takes a model alone.

    Of a folder with an adapter it is a view without that, which transformers would add unasked.

    Raises:
        ModelError: the folder holds an adapter alone, or weights that are pickled.
    """
    folder = Path(model_folder(path))
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if faults := [*_file_faults(folder, names)]:
        raise ModelError(f"{setting} {path!r}: {'; '.join(faults)}")
    if ADAPTER not in names:
        yield str(folder)
        return
    with TemporaryDirectory() as view:
        for name in names - {ADAPTER}:
            (Path(view) / name).symlink_to((folder / name).absolute())
        yield view


def _file_faults(folder: Path, names: set[str]) -> Iterator[str]:
    """Yield what is wrong with the files of a folder."""
    if ADAPTER in names and "config.json" not in names:
        try:
            base = json.loads((folder / ADAPTER).read_bytes()).get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError):
            base = None
        yield (
            f"the folder holds an adapter alone, without a model; name its base instead "
            f"({base or 'which it does not name'}), and set adapter.start to this folder"
        )
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    pickled = [name for name in pickled if name.startswith(("pytorch_model", "model", "consol"))]
    safe = [name for name in names if name.endswith(".safetensors")]
    if pickled and all(name.startswith("adapter") for name in safe):
        yield (
            f"its weights are pickled ({pickled[0]}), and a pickle may run anybody's code: it is "
            "not opened. Save the model as safetensors where you trust it, with transformers' "
            "save_pretrained"
        )


def check_config(path: str, config: Any) -> None:
    """Refuse a model whose weights are stored in a form that cannot be trained on.

    Raises:
        ModelError: they are quantised.
    """
    found = getattr(config, "quantization_config", None) or {}
    found = found if isinstance(found, Mapping) else found.to_dict()
    method = found.get("quant_method")
    if found and method not in LOADABLE:
        raise ModelError(
            f"model.path {path!r}: its weights are quantised ({method}); take the model that it "
            "was made of. To store frozen experts in fewer bits set `frozen` of a budget's tier"
        )


def weight_faults(info: Mapping[str, Any]) -> Iterator[str]:
    """Yield which weights transformers would make up, or leave out, by its report on the keys."""
    kinds = (
        ("missing_keys", "weights are missing", "transformers would make them up"),
        (
            "mismatched_keys",
            "weights have another shape than its config says",
            "transformers would make them up",
        ),
        (
            "unexpected_keys",
            "weights belong to no part of the model that its config describes",
            "they would be left out",
        ),
    )
    for kind, what, then in kinds:
        found = map(_shape_text, info.get(kind, ()))
        if keys := sorted(key for key in found if not FURTHER.search(key)):
            listed = ", ".join(keys[:MOST_SHOWN])
            yield f"{len(keys)} {what}, such as {listed}; {then}"


def weight_warnings(info: Mapping[str, Any]) -> Iterator[str]:
    """Yield that heads for further tokens are left out."""
    if keys := sorted(filter(FURTHER.search, info.get("unexpected_keys", ()))):
        yield f"{len(keys)} weights that guess further tokens, such as {keys[0]}, are left out"


def _shape_text(key: Any) -> str:
    if isinstance(key, str):
        return key
    name, stored, wanted = key
    return f"{name} ({_by(stored)} in place of {_by(wanted)})"


def _by(shape: Any) -> str:
    return " x ".join(map(str, shape))


def cannot_load(path: str, kind: str, error: Exception) -> str:
    """Return an error's text: no such folder, no model in it, or no such id on the Hub."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not isinstance(error, OSError | ValueError | ImportError):
        reason = f"{type(error).__name__}: {reason}"
    folder = Path(model_folder(path))
    if folder.is_dir():
        if "custom code" in str(error):
            reason = "its config names code in the folder, and code of a model is never run"
        return f"model.path {path!r}: the folder holds no {kind} that can be loaded ({reason})"
    if folder.is_file():
        return f"model.path {path!r} is a file; expected the folder with its config.json"
    guess = _beside(folder)
    if _is_path(path):
        away = "" if folder.parent.is_dir() else f"; there is no folder {folder.parent} either"
        return f"model.path {path!r}: no such folder{guess or away}"
    return (
        f"model.path {path!r}: no such folder{guess}, and the Hugging Face Hub gives no model of "
        f"this id: {_hub_reason(error, reason)}"
    )


def _is_path(path: str) -> bool:
    """Return whether a text can only mean a folder: no id of the Hub looks like that."""
    return path.startswith((".", "~", os.sep)) or path.endswith(os.sep) or path.count(os.sep) > 1


def _beside(folder: Path) -> str:
    """Return which model's folder was likely meant; empty where none is near."""
    there = [p.parent.name for p in folder.parent.glob("*/config.json")]
    near = get_close_matches(folder.name, there, n=1)
    return f" (did you mean {folder.parent / near[0]}?)" if near else ""


def _hub_reason(error: BaseException, reason: str) -> str:
    """Return why the Hub gives nothing, by the errors of its library that led to this one."""
    names, found = set(), error
    while found is not None:
        names |= {kind.__name__ for kind in type(found).__mro__}
        found = found.__cause__ or found.__context__
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "it is not in the cache of this machine, and HF_HUB_OFFLINE forbids to fetch it"
    if "GatedRepoError" in names:
        return "it is gated; accept its terms on its page, and log in with `hf auth login`"
    if "RepositoryNotFoundError" in names:
        return "there is no such model, or it is private; log in with `hf auth login`"
    if "HFValidationError" in names:
        return "no id looks like that; expected owner/name"
    if names & {
        "ConnectionError",
        "ConnectError",
        "Timeout",
        "TimeoutException",
        "OfflineModeIsEnabled",
    }:
        return "the Hub cannot be reached, and the model is not in the cache of this machine"
    return reason
