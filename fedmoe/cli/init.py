"""`fedmoe init`: a commented config for one's own rows and model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from string import Template

import click

from fedmoe.cli import arguments
from fedmoe.errors import FedMoEError
from fedmoe.system.files import expanded

FILE, ROWS = "config.yaml", "rows.jsonl"
KINDS = (".json", ".jsonl", ".csv", ".parquet")
PARTITION = """partition:
  name: iid                    # rows dealt out evenly; dirichlet: clients differ by data.label
  num_clients: {clients}  # how many share the rows

"""


@click.command()
@click.argument("folder", type=arguments.FILE, default=".", help="An empty folder, or a new one.")
@click.option(
    "--data",
    default="",
    help="A .json, .jsonl, .csv or .parquet file, a folder with one for each client, or a dataset "
    "of the Hugging Face Hub; when omitted, example rows are written for you to replace.",
)
@click.option("--model", default="mini", help="mini, a folder, or a Hub id.")
@click.option(
    "--clients",
    type=click.IntRange(min=1),
    help="Number of clients; 4 when omitted, or the files of the folder.",
)
@click.option("--name", help="The run's name; the folder's when omitted.")
def init(folder: Path, data: str, model: str, clients: int | None, name: str | None) -> None:
    """Write a commented config for your own rows and model.

    \b
    Examples:
      fedmoe init my-experiment
      fedmoe init my-experiment --data rows.jsonl --model allenai/OLMoE-1B-7B-0924 --clients 8
    """
    from fedmoe.models.adapted import LoRA
    from fedmoe.models.build import MINI, ModelSettings
    from fedmoe.models.memory.meta import meta_model

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FedMoEError(f"{folder} is not an empty folder; name another, nothing is overwritten")
    top_k = meta_model(ModelSettings(path=model), LoRA()).full_top_k
    # Of equal ks the last one stays.
    tiers = {1: "low", max(1, top_k // 2): "medium", top_k: "high"}
    path, own = (expanded(data) if data else folder / ROWS).resolve(), expanded(model).exists()
    kind, number = _kind(path, bool(data), clients)
    file = shlex.quote(str(folder / FILE))
    settings = {
        "file": file,
        "name": re.sub(r"[^\w.-]+", "-", name or folder.resolve().name) or "run",
        "clients": number,
        "model": json.dumps(str(expanded(model).resolve()) if own else model),
        "dtype": "float32" if own or model == MINI else "bfloat16",
        "rate": "5e-3" if model == MINI else "2e-4",
        "kind": kind,
        "data": json.dumps(data if kind == "hub" else str(path)),
        "partition": "" if kind == "federated" else PARTITION.format(clients=number),
        "top_k": top_k,
        "tiers": "\n".join(f"    {tier}: {{top_k: {k}}}" for k, tier in reversed(tiers.items())),
    }
    template = Path(__file__).with_name(FILE).read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(Template(template).substitute(settings), encoding="utf-8")
    if not data:
        (folder / ROWS).write_text("".join(_example_rows()), encoding="utf-8")
    print(f"{folder / FILE} is written" + ("" if data else f"; put your rows in {folder / ROWS}"))
    print(f"next: fedmoe check {file}\nthen: fedmoe run {file}")


def _kind(path: Path, given: bool, clients: int | None) -> tuple[str, int]:
    """Return the data set's name, and the number of clients."""
    from fedmoe.data.federated import Federated, LocalData

    if not (given and path.is_dir()):
        files = path.is_file() or path.suffix.lower() in KINDS
        return "files" if files else "hub", clients or 4
    there = len(LocalData(Federated(path=str(path))).names)
    if clients not in (None, there):
        raise FedMoEError(
            f"--clients {clients}: each of the {there} files in {path} is a client; leave "
            "--clients out, or name one file, whose rows are then shared out"
        )
    return "federated", there


def _example_rows() -> list[str]:
    """Return lines of JSON that stand in for the user's rows."""
    sums = [(a, b) for a in range(20) for b in range(10)]
    rows = ({"instruction": f"What is {a} plus {b}?", "output": str(a + b)} for a, b in sums)
    return [json.dumps(row) + "\n" for row in rows]
