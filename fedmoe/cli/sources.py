"""Refusals of what a command is to read and write, before torch and a model are loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path
from shutil import which as which_program

from fedmoe.errors import FedMoEError, no_common_model
from fedmoe.models.folder import MINI, model_folder
from fedmoe.system.files import expanded

LEDGER, CERTIFICATE = "ledger.jsonl", "fedmoe-export.json"
KNOWN = (LEDGER, "adapter_config.json", "config.json", CERTIFICATE)
"""Files by which the folder of a run, an adapter or a model is known."""
PERSONAL = ("fedsa_lora", "local_only")
"""Strategies whose clients keep a part of the model to themselves."""


def check_run(folder: Path, which: str = "", tiers: Sequence[str] = ()) -> None:
    """Refuse a folder that is no run's, or lacks an adapter or a tier.

    Args:
        folder: the run's.
        which: `last` or `best`, if an adapter is needed.
        tiers: names that the run must know.

    Raises:
        FedMoEError: it is none, or lacks one.
    """
    if not folder.is_dir():
        raise FedMoEError(f"{folder}: no such folder; expected that of a run")
    if not (folder / LEDGER).is_file():
        runs = sorted(place.parent.name for place in folder.glob(f"*/{LEDGER}"))
        inside = f"; there are runs in it, such as {runs[0]}" if runs else ""
        said = f"{folder} is not the folder of a run: {LEDGER} is missing"
        raise FedMoEError(f"{said}{inside}")
    if tiers:
        from fedmoe.report.run import read_run

        names = [known.name for known in read_run(folder).tiers]
        if odd := [tier for tier in tiers if tier not in names]:
            raise FedMoEError(f"--tier {odd[0]!r} is not one of {', '.join(map(repr, names))}")
    if which and not (folder / (name := f"adapter-{which}.safetensors")).is_file():
        said = f"{folder} is not the folder of a run with an adapter"
        raise FedMoEError(f"{said}: {name} is missing")
    if which:
        from fedmoe.report.run import read_run

        if (name := read_run(folder).settings.get("aggregation.name")) in PERSONAL:
            raise FedMoEError(no_common_model(name))


def model_type_of(run: Path) -> str:
    """Return the family of a run's base model, by transformers' name; empty if it is not here."""
    from fedmoe.report.run import read_run

    config = Path(model_folder(read_run(run).header["model"]), "config.json")
    return json.loads(config.read_bytes()).get("model_type", "") if config.is_file() else ""


def check_source(source: str, which: str = "last", tiers: Sequence[str] = ()) -> None:
    """Refuse what is no run, adapter or model; say that the Hub is asked for what is no folder.

    Raises:
        FedMoEError: a folder that is none of them or for another program, or is not there.
    """
    folder = expanded(source)
    if (folder / LEDGER).is_file():
        check_run(folder, which, tiers)
        return
    if tiers:
        raise FedMoEError(f"{source} is no run, and so has no tiers; leave --tier out")
    if folder.is_dir():
        check_folder(folder)
    elif source != MINI:
        first, slash, _ = source.partition("/")
        if source.startswith((".", "/", "~")) or (slash and Path(first).is_dir()):
            raise FedMoEError(f"{source}: no such folder")
        print(f"fedmoe: {source} is not a folder here; looking for it on the Hub", file=sys.stderr)


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no adapter's and no model's, or for another program.

    Raises:
        FedMoEError: it is none.
    """
    if not folder.is_dir():
        raise FedMoEError(f"{folder}: no such folder")
    if not any((folder / name).is_file() for name in KNOWN):
        raise FedMoEError(
            f"{folder} is not the folder of a run, an exported adapter or a model: it has none of "
            f"{', '.join(KNOWN[:-1])}"
        )
    if (folder / CERTIFICATE).is_file():
        facts = json.loads((folder / CERTIFICATE).read_text(encoding="utf-8"))
        if facts.get("writes") not in ("fused", "merged"):
            raise FedMoEError(
                f"{folder} is an export for {facts['reader']}: its README.md has the commands that "
                "serve it; fedmoe loads those that were made with --for peft or --for merged"
            )


def check_files(
    data: Path | None = None, written: Path | None = None, python: Path | None = None
) -> None:
    """Refuse rows and a program that are not there, and a file that cannot be written.

    Raises:
        FedMoEError: the first of them.
    """
    if data is not None and not data.exists() and not has_magic(str(data)):
        raise FedMoEError(f"--data {data}: no such file or folder")
    if written is not None and written.is_dir():
        raise FedMoEError(f"{written} is a folder; name a file")
    if written is not None and not written.absolute().parent.is_dir():
        raise FedMoEError(f"{written}: there is no folder {written.parent}")
    if python is not None and which_program(python) is None:
        raise FedMoEError(f"--harness-python {python}: no such program")
