"""`python -m simulations.rehearsal FOLDER`: kill a deployment's processes and see what comes of it.

    fedmoe deploy init trial --server 127.0.0.1 --config configs/deploy/rehearsal.yaml \\
        --clients a=lowest,b=low,c=high
    python -m simulations.rehearsal trial --kills 3 --who 'server app' SuperLink
    python -m simulations.rehearsal trial            (all 26 kills; about 40 minutes)

The deployment of a loopback folder runs again and again. Each process that is killed is started
again as its service would; the run is submitted again as the folder's README says. The adapter is
compared with that of an undisturbed run. What came of it: `kills.md`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from fedmoe.config import load_experiment
from fedmoe.deploy.app import EXPERIMENT
from fedmoe.errors import FedMoEError
from fedmoe.report.ledger import Record
from fedmoe.system.files import write_text
from simulations.rehearsal.deployment import Deployment
from simulations.rehearsal.kills import LADDER, Kill
from simulations.rehearsal.processes import ROLES, Role
from simulations.rehearsal.table import Outcome, page, rows_of
from simulations.rehearsal.watching import Watched


def main(argv: Sequence[str] | None = None) -> int:
    """Rehearse a folder's crashes; the exit code is 0, or 2 for a user's mistake."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("rehearsal", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("folder", type=Path, help="a folder of `fedmoe deploy init` on loopback")
    add("--kills", type=int, help="stop after so many (default: every kind at every moment)")
    add("--who", nargs="+", default=ROLES, choices=ROLES, help="kill these alone (default: all)")
    add("--out", type=Path, help="where the table goes (default: FOLDER/rehearsal)")
    arguments = parser.parse_args(argv)
    out = arguments.out or arguments.folder / "rehearsal"
    try:
        rehearse(arguments.folder, out, arguments.kills, arguments.who)
    except FedMoEError as error:
        print(f"rehearsal: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def rehearse(folder: Path, out: Path, most: int | None, who: Sequence[Role]) -> None:
    """Write the table to `out`; at most `most` kills, of `who` alone.

    Raises:
        FedMoEError: the folder is not for loopback, or its undisturbed run does not end.
    """
    deployment, rows = Deployment(folder, out / "state"), list[str]()
    rounds = load_experiment(folder / "server" / "app" / EXPERIMENT).rounds
    if rounds < 3 or len(deployment.clients) < 3:
        raise FedMoEError(f"{folder}: a rehearsal needs at least 3 rounds and 3 clients")
    out.mkdir(parents=True, exist_ok=True)
    reference, _ = one_run(deployment, ())
    if not reference or reference[-1]["kind"] != "end":
        log = (deployment.state / "submitted.log").read_text(errors="replace")[-2000:]
        raise FedMoEError(f"the undisturbed run did not end; see its log:\n{log}")
    left = most
    for kills in LADDER:
        if chosen := [kill for kill in kills if kill.who in who][:left]:
            ledger, outcomes = one_run(deployment, chosen)
            rows += rows_of(ledger, outcomes, reference)
            write_text(out / "kills.md", page(rows, reference))
            left = None if left is None else left - len(chosen)
    print(page(rows, reference), end="")


def one_run(deployment: Deployment, kills: Sequence[Kill]) -> tuple[list[Record], list[Outcome]]:
    """Carry out one run from nothing to its end; all processes are gone afterwards."""
    shutil.rmtree(deployment.state, ignore_errors=True)
    watched = Watched(deployment, kills)
    try:
        return watched.run(), watched.outcomes
    finally:
        deployment.stop()


if __name__ == "__main__":
    sys.exit(main())
