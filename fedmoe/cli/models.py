"""`fedmoe models`: families that can be trained, those that cannot and why, and their sizes."""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmoe.cli.terminal import print_table, say, table, terminal
from fedmoe.errors import FedMoEError

if TYPE_CHECKING:
    from fedmoe.models.families import Family, Refused
    from fedmoe.report.text_table import TextTable


@click.command()
@click.argument("names", nargs=-1, metavar="[MODEL_TYPE]...", help="Families; all when omitted.")
@click.option("--json", is_flag=True, help="Print one JSON list.")
def models(names: tuple[str, ...], json: bool) -> None:
    """List model families, and their parameters at every k.

    Sizes follow from configurations alone; no weights are read.

    \b
    Examples:
      fedmoe models
      fedmoe models deepseek_v3 mixtral
      fedmoe models --json
    """
    rows = [described(family) for family in _chosen(names)]
    if json:
        print(json_text.dumps(rows, indent=2))
        return

    console = terminal()
    for found in (_trained(rows), _sizes(rows)):
        print_table(console, found)
    if refused := [row for row in rows if row["status"] == "refused"]:
        say(console, "families that are not trained")
    for row in refused:
        say(console, f"  {row['family']}: {row['reason']}")


def described(family: Family | Refused) -> dict[str, Any]:
    """Return what is known of a family, ready for JSON; parameters are counted without weights."""
    from fedmoe.models.families import FAMILIES, Refused
    from fedmoe.models.families.parameters import published

    about: dict[str, Any] = {"family": family.name, "model_type": family.model_type}
    if isinstance(family, Refused):
        about |= {"status": "refused", "reason": family.reason, "closest": family.closest}
        counted_as = FAMILIES.get(family.closest)
    else:
        about |= {
            "status": "trained",
            "routing": family.rule,
            "shared_expert": family.shared,
            "lora": list(family.attention),
            "notes": family.notes,
            "peft_export": family.no_peft or True,
        }
        counted_as = family
    about["sizes"] = []
    for size in family.sizes:
        assert counted_as is not None, f"{family.name} has sizes and no class to count them with"
        counted = published(counted_as, size)
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


def _chosen(names: tuple[str, ...]) -> list[Family | Refused]:
    from fedmoe.models.families import FAMILIES, refused_families

    known = [*FAMILIES.values(), *refused_families()]
    by_name = {family.name.lower(): family for family in known}
    by_name |= {family.model_type.lower(): family for family in known if family.model_type}
    if unknown := [name for name in names if name.lower() not in by_name]:
        faults = "; ".join(_unknown(name, by_name) for name in unknown)
        raise FedMoEError(f"{faults} (`fedmoe models` lists all)")
    return [by_name[name.lower()] for name in names] if names else known


def _unknown(name: str, known: Mapping[str, Family | Refused]) -> str:
    from fedmoe.models.families import Refused

    if Path(name).is_dir():
        return f"{name} is a folder; `fedmoe check` with model.path={name} says what it holds"
    trained = [word for word in sorted(known) if not isinstance(known[word], Refused)]
    # A family that is refused helps only where no other is near.
    near = [word for word in trained if word.startswith(name.lower())]
    near = near or get_close_matches(name.lower(), trained, n=4, cutoff=0.5)
    near = near or get_close_matches(name.lower(), known, n=4)
    families = [*{known[word].name: repr(word) for word in reversed(near)}.values()][::-1]
    guess = f"; did you mean {' or '.join(families[:2])}?" if near else ""
    return f"no family {name!r}{guess}"


def _trained(rows: list[dict[str, Any]]) -> TextTable:
    found = []
    for row in rows:
        if row["status"] == "trained":
            notes = ["shared expert"] * row["shared_expert"] + [row["notes"]] * bool(row["notes"])
            notes += ["no export for PEFT"] * (row["peft_export"] is not True)
            found.append((row["family"], row["model_type"], row["routing"], "; ".join(notes)))
    columns = ("family", "model_type", "a router's weights", "notes")
    return table("families that are trained", columns, found, num_words=4)


def _sizes(rows: list[dict[str, Any]]) -> TextTable:
    from fedmoe.models.families.parameters import rounded

    found = [
        (
            size["name"] + ("" if row["status"] == "trained" else " *"),
            str(size["num_experts"]),
            rounded(size["total"]),
            # Without spaces: a line may end after a comma, not inside a number.
            ", ".join(rounded(n).replace(" ", "") for n in size["active"].values()),
            size["stated"],
        )
        for row in rows
        for size in row["sizes"]
    ]
    title = "published sizes: parameters in all, and active per token with k experts"
    columns = ("model", "experts", "total", "active with k = 1, 2, ... K", "its makers say")
    starred = any(row["status"] == "refused" and row["sizes"] for row in rows)
    note = "* counted with the closest class there is; its checkpoint does not load"
    return table(title, columns, found, num_words=5, note=note if starred else "")
