"""`fedmoe models`: the families that can be trained, those that cannot and why, and their sizes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fedmoe.errors import FedMoEError

if TYPE_CHECKING:
    from fedmoe.models.families import Family, Refused

EXAMPLES = """\
  fedmoe models                       (all families; sizes from configs alone, no weights)
  fedmoe models deepseek_v3 mixtral
  fedmoe models --json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fedmoe models`."""
    parser.add_argument("names", nargs="*", metavar="MODEL_TYPE", help="which (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def models(arguments: argparse.Namespace) -> None:
    """List families of sparse MoE models: how they route, parameters per k, or why they cannot."""
    rows = [described(family) for family in _chosen(arguments.names)]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    console = Console()
    for table in (_trained(rows), _sizes(rows)):
        if table.row_count:
            console.print(table)
    if refused := [row for row in rows if row["status"] == "refused"]:
        console.print("families that are not trained")
    for row in refused:
        console.print(f"  {row['family']}: {row['reason']}", highlight=False, soft_wrap=True)


def described(family: Family | Refused) -> dict[str, Any]:
    """What is known of a family, ready for JSON; parameters are counted without weights."""
    from fedmoe.models.families import FAMILIES, Refused
    from fedmoe.models.families.parameters import published

    about: dict[str, Any] = {"family": family.name, "model_type": family.model_type}
    if isinstance(family, Refused):
        about |= {"status": "refused", "reason": family.reason, "closest": family.closest}
    else:
        about |= {
            "status": "trained",
            "routing": family.rule,
            "shared_expert": family.shared,
            "lora": list(family.attention),
            "notes": family.notes,
            "peft_export": family.no_peft or True,
        }
    as_family = FAMILIES.get(family.closest) if isinstance(family, Refused) else family
    about["sizes"] = []
    for size in family.sizes:
        assert as_family is not None, f"{family.name} has sizes and no class to count them with"
        counted = published(as_family, size)
        about["sizes"].append(
            {
                "name": size.name,
                "stated": size.stated,
                "source": size.source,
                "num_experts": counted.num_experts,
                "top_k": counted.top_k,
                "total": counted.total,
                "active": {k: counted.active(k) for k in range(1, counted.top_k + 1)},
            }
        )
    return about


def _chosen(names: list[str]) -> Iterable[Family | Refused]:
    from fedmoe.models.families import FAMILIES, refused_families

    refused = {family.model_type or family.name.lower(): family for family in refused_families()}
    known = {**FAMILIES, **refused}
    by_name = {family.name.lower(): family for family in known.values()}
    by_name |= {model_type.lower(): family for model_type, family in known.items()}
    if unknown := [name for name in names if name.lower() not in by_name]:
        said = "; ".join(_unknown(name, sorted(by_name)) for name in unknown)
        raise FedMoEError(f"{said} (`fedmoe models` lists all)")
    return [by_name[name.lower()] for name in names] if names else known.values()


def _unknown(name: str, known: list[str]) -> str:
    if Path(name).is_dir():
        return f"{name} is a folder; `fedmoe check` with model.path={name} says what it holds"
    near = get_close_matches(name.lower(), known, n=2)
    return f"no family {name!r}" + (
        f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    )


def _trained(rows: list[dict[str, Any]]) -> Table:
    table = _table("families that are trained", "family", "model_type", "a router's weights", "")
    for row in rows:
        if row["status"] == "trained":
            notes = ["shared expert"] * row["shared_expert"] + [row["notes"]] * bool(row["notes"])
            if row["peft_export"] is not True:
                notes.append("no export for PEFT")
            table.add_row(row["family"], row["model_type"], row["routing"], "; ".join(notes))
    return table


def _sizes(rows: list[dict[str, Any]]) -> Table:
    from fedmoe.models.families.parameters import rounded

    table = _table(
        "published sizes: parameters in all, and active per token with k experts",
        "model",
        "experts",
        "total",
        "active with k = 1, 2, ... K",
        "its makers say",
    )
    for row in rows:
        mark = "" if row["status"] == "trained" else " *"
        for size in row["sizes"]:
            active = ", ".join(rounded(number) for number in size["active"].values())
            table.add_row(
                size["name"] + mark,
                str(size["num_experts"]),
                rounded(size["total"]),
                active,
                size["stated"],
            )
    if any(row["status"] == "refused" and row["sizes"] for row in rows):
        table.caption = "* counted with the closest class there is; its checkpoint does not load"
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, caption_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
