"""`fedmoe init`: a commented config for one's own rows and model."""

from __future__ import annotations

import json
import re
import shlex
from difflib import get_close_matches
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
    help="A .json, .jsonl, .csv or .parquet file, a folder with one for each owner, or a dataset "
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
    kind, number = _kind(path, data, clients)
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
        "top_k": top_k,
        **_shared(kind == "federated", number, tiers),
    }
    template = Path(__file__).with_name(FILE).read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    text = Template(template).substitute(settings).replace("\n\n\n", "\n\n")
    (folder / FILE).write_text(text, encoding="utf-8")
    if not data:
        (folder / ROWS).write_text("".join(_example_rows()), encoding="utf-8")
    print(f"{folder / FILE} is written" + ("" if data else f"; put your rows in {folder / ROWS}"))
    print(f"next: fedmoe check {file}\nthen: fedmoe run {file}")


def _shared(by_owner: bool, clients: int, tiers: dict[int, str]) -> dict[str, str]:
    """Return how rows come to clients, and clients to tiers: by name where each has a file."""
    (low, low_name), (high, high_name) = min(tiers.items()), max(tiers.items())
    if by_owner:
        lines = [f"    {high_name}: {{top_k: {high}}}"]
        if low < high:
            lines.append(f"    # {low_name}: {{top_k: {low}, clients: [a, b]}}  # owners by name")
        default = f"  default: {high_name}                # of owners that no tier lists\n"
        return {"partition": "", "default": default, "tiers": "\n".join(lines), "long": "truncate"}
    partition = PARTITION.format(clients=clients)
    lines = [f"    {tier}: {{top_k: {k}}}" for k, tier in reversed(tiers.items())]
    return {"partition": partition, "default": "", "tiers": "\n".join(lines), "long": "drop"}


def _kind(path: Path, data: str, clients: int | None) -> tuple[str, int]:
    """Return the data set's name, and the number of clients.

    Raises:
        FedMoEError: there is nothing of this name; or not so many clients.
    """
    from fedmoe.data.federated import Federated, LocalData

    if not (data and path.is_dir()):
        files = path.is_file() or path.suffix.lower() in KINDS
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        if data and not path.is_file() and (near or (not files and "/" not in data)):
            guess = f"; did you mean {near[0]}?" if near else "; a dataset of the Hub is owner/name"
            raise FedMoEError(f"{data}: no such file or folder{guess}")
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
