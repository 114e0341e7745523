"""`fedmoe bench`: run benchmarks and print their table."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import import_module

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from simulations.benchmarks import BENCHMARKS, LONG
from simulations.benchmarks.measure import Options, Row, named

LIBRARIES = ("torch", "transformers", "peft", "flwr")


def bench(names: Sequence[str], options: Options, console: Console, as_json: bool) -> None:
    """Run the benchmarks named, all when none is, and print a line as soon as it is measured."""
    torch.set_num_threads(options.threads)
    where = "" if options.device == "cpu" else f" on {torch.cuda.get_device_name()}"
    clock = "processor time" if options.clock is time.thread_time else "wall time"
    head = f"{options.threads} thread(s), medians of {options.repeats} turns{where}, {clock} of "
    head += "what is computed in one thread; " + ", ".join(named(library) for library in LIBRARIES)
    table = Table(title=head, title_justify="left", box=SIMPLE)
    for column in ("what", "setting", "figure", "wanted", "met", "note"):
        table.add_column(column, justify="right" if column == "figure" else "left")
    if not as_json:
        console.print(head)
    usual = [name for name in BENCHMARKS if name not in LONG]
    for name, row in measured(names or usual, options):
        if as_json:
            print(json.dumps({"benchmark": name, **asdict(row)}), flush=True)
            continue
        met = {True: "yes", False: "NO", None: ""}[row.met]
        console.print(f"{row.what}; {row.setting}: {row.figure}", markup=False, highlight=False)
        table.add_row(row.what, row.setting, row.figure, row.wanted, met, row.note)
    if not as_json:
        console.print(table)


def measured(names: Sequence[str], options: Options) -> Iterator[tuple[str, Row]]:
    """Every row with the name of its benchmark."""
    for name in names:
        for row in import_module(f"simulations.benchmarks.{name}").rows(options):
            yield name, row
