"""`python -m simulations.benchmarks`: measure speed and memory as ratios, in turns in one process.

python -m simulations.benchmarks                        (all; half an hour)
python -m simulations.benchmarks layer --threads 2
python -m simulations.benchmarks --quick                (small sizes: does everything run?)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedmoe.errors import FedMoEError
from simulations.benchmarks import BENCHMARKS
from simulations.benchmarks.command import bench
from simulations.benchmarks.measure import Options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks that are named; the exit code is 0, or 2 for a user's mistake."""
    arguments = _parser().parse_args(argv)
    try:
        _check(arguments)
    except FedMoEError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return error.exit_code
    options = Options(
        arguments.repeats, arguments.threads, arguments.quick, arguments.plots, arguments.device
    )
    bench(arguments.names, options, Console(), arguments.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks", description=__doc__, formatter_class=raw)
    names = ", ".join(BENCHMARKS)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"which benchmarks (default: all): {names}")
    add("--repeats", type=int, default=5, help="repetitions per median, 5 or more (default: 5)")
    add("--threads", type=int, default=1, help="threads of torch (default: 1)")
    add("--quick", action="store_true", help="small sizes: the ratios decide nothing")
    add("--json", action="store_true", help="print one JSON line per figure")
    add("--plots", type=Path, help="folder for the scaling curves as PNG")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of `layer` (default: cpu)")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    if unknown := [name for name in arguments.names if name not in BENCHMARKS]:
        raise FedMoEError(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    if arguments.repeats < 5 or arguments.threads < 1:
        raise FedMoEError(
            f"--repeats is {arguments.repeats}, --threads {arguments.threads}; expected at least "
            "5 (a median of fewer says little) and 1"
        )


if __name__ == "__main__":
    sys.exit(main())
