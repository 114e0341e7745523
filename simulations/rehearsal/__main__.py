"""`python -m simulations.rehearsal FOLDER`: kill a deployment's processes and see what comes of it.

    fedmoe deploy init trial --server 127.0.0.1 --config configs/deploy/rehearsal.yaml \\
        --clients a=lowest,b=low,c=high
    python -m simulations.rehearsal trial --kills 3 --who 'server app' SuperLink
    python -m simulations.rehearsal trial          (the whole table; given again, it resumes)

The fleet of a loopback folder runs again and again. Each process that is killed is started again as
its service would; the run is submitted again as the folder's README says. The adapter is compared
with that of an undisturbed run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedmoe.errors import FedMoEError
from simulations.rehearsal.processes import ROLES
from simulations.rehearsal.rehearse import rehearse


def main(argv: Sequence[str] | None = None) -> int:
    """Rehearse a folder's crashes; the exit code is 0, or 2 for a user's mistake."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("rehearsal", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("folder", type=Path, help="a folder of `fedmoe deploy init` on loopback")
    add("--kills", type=int, help="stop after so many (default: every kind at every moment)")
    add("--who", nargs="+", default=[], choices=ROLES, help="kill these alone (default: all)")
    add("--out", type=Path, help="where the table goes (default: FOLDER/rehearsal)")
    arguments = parser.parse_args(argv)
    out = arguments.out or arguments.folder / "rehearsal"
    try:
        rehearse(arguments.folder, out, arguments.kills, arguments.who)
    except FedMoEError as error:
        print(f"rehearsal: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
