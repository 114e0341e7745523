"""`python -m simulations.benchmarks`: measure speed and memory as ratios, in turns in one process.

python -m simulations.benchmarks                        (all; half an hour on 2 CPU cores)
python -m simulations.benchmarks layer --threads 2      (`layer` alone: five minutes)
python -m simulations.benchmarks --quick                (small sizes: does everything run?)
python -m simulations.benchmarks gpu layer --device cuda   (all that a GPU can tell, in 8 minutes)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module

import torch

from simulations.benchmarks import BENCHMARKS
from simulations.benchmarks.measure import Options, named

LIBRARIES = ("torch", "transformers", "peft", "flwr")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks that are named; the exit code is 0, or 2 for a user's mistake."""
    arguments = _parser().parse_args(argv)
    faults = [
        f"there is no benchmark {name!r}; name some of {', '.join(BENCHMARKS)}"
        for name in arguments.names
        if name not in BENCHMARKS
    ]
    if arguments.repeats < 5:
        faults.append(f"--repeats is {arguments.repeats}; a median of fewer than 5 says little")
    if arguments.threads < 1:
        faults.append(f"--threads is {arguments.threads}; name 1 or more")
    for fault in faults:
        print(f"benchmarks: error: {fault}", file=sys.stderr)
    if faults:
        return 2
    given = vars(arguments)
    options = Options(**{k: v for k, v in given.items() if k not in ("names", "json")})
    run(arguments.names or BENCHMARKS, options, arguments.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks", description=__doc__, formatter_class=raw)
    names = ", ".join(BENCHMARKS)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"benchmarks to run (default: all): {names}")
    add("--repeats", type=int, default=5, help="repetitions per median, 5 or more (default: 5)")
    add("--threads", type=int, default=1, help="threads of torch (default: 1)")
    add("--quick", action="store_true", help="small sizes: the ratios decide nothing")
    add("--json", action="store_true", help="print one JSON line per figure")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="device of `layer` and `gpu`")
    return parser


def run(names: Sequence[str], options: Options, as_json: bool) -> None:
    """Print each figure as soon as it is measured: a line of a Markdown table, or of JSON."""
    torch.set_num_threads(options.threads)
    if not as_json:
        where = "" if options.device == "cpu" else f" on {torch.cuda.get_device_name()}"
        clock = "processor" if options.clock is time.thread_time else "wall"
        used = ", ".join(named(library) for library in LIBRARIES)
        print(f"{options.threads} thread(s), medians of {options.repeats} turns{where}, {clock}")
        print(f"time of what is computed in one thread; {used}\n")
        print("| what | at | figure | bar | met | note |\n|---|---|--:|---|---|---|")
    for name in names:
        for row in import_module(f"simulations.benchmarks.{name}").rows(options):
            met = {True: "yes", False: "NO", None: ""}[row.met]
            cells = row.what, row.setting, row.figure, row.wanted, met, row.note
            said = {"benchmark": name, **asdict(row)}
            print(json.dumps(said) if as_json else f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
