"""Runs with kills against a run without: the table of what came of each kill."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmoe.config import load_experiment
from fedmoe.deploy.app import EXPERIMENT
from fedmoe.errors import FedMoEError
from fedmoe.report.ledger import Record
from fedmoe.system.digests import code_digest
from fedmoe.system.files import write_json, write_text
from simulations.rehearsal.kills import LADDER, Kill
from simulations.rehearsal.processes import RESTART_SECONDS, ROLES, Deployment, Role
from simulations.rehearsal.watching import Outcome, Trace, Watched, left_out, log_tail, trace

MOST_SECONDS = 600.0
"""A run that stands still for longer is given up."""
HEAD = """\
# What came of kills

`fedmoe deploy rehearse` killed {who}, with SIGKILL.
What systemd would start again was started again after {restart:g} s; where the run itself had died,
it was submitted again by the same command. Seconds are from the kill until the run was further than
before. The undisturbed run took {seconds:.0f} s and ended with adapter `{digest}`; the same bits
are those of the adapter, and in the ledger all that clients reported and all scores.

| killed | when | what happened | s | same bits |
|---|---|---|--:|---|
"""


@dataclass
class Table:
    """What is known so far, kept in a file: a rehearsal goes on where it stopped."""

    path: Path
    made_from: str
    """A digest of the code and the folder's experiment."""
    reference: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By a kill's key."""

    @classmethod
    def of(cls, path: Path, made_from: str) -> Table:
        """The table of a file, or an empty one.

        Raises:
            FedMoEError: the file is of other code or another experiment.
        """
        if not path.exists():
            return cls(path, made_from)
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["made_from"] != made_from:
            raise FedMoEError(
                f"{path} is of other code or another experiment; remove it, or name another --out"
            )
        return cls(path, **kept)

    def write(self) -> None:
        """Write the JSON and, beside it, the Markdown."""
        kept = {"made_from": self.made_from, "reference": self.reference, "rows": self.rows}
        write_json(self.path, kept)
        write_text(self.path.with_suffix(".md"), self.markdown())

    def lacks(self, kill: Kill) -> bool:
        """Whether a kill has not been carried out."""
        return kill.key not in self.rows or self.rows[kill.key]["seconds"] is None

    def markdown(self) -> str:
        """The table as text; the runs' order."""
        rows = [row for kill in _all() if (row := self.rows.get(kill.key))]
        who = ", ".join(dict.fromkeys(row["who"] for row in rows))
        head = HEAD.format(
            who=who or "none",
            restart=RESTART_SECONDS,
            seconds=self.reference["seconds"],
            digest=self.reference["adapter_sha256"][:16],
        )
        return head + "".join(
            f"| {r['who']} | {r['when']} | {r['outcome']} | {_seconds(r['seconds'])} "
            f"| {r['same']} |\n"
            for r in rows
        )


def rehearse(folder: Path, out: Path, most: int | None, who: Sequence[Role]) -> None:
    """Fill the table in `out`; at most `most` further kills, of `who` alone where it names any.

    Raises:
        FedMoEError: the folder is not for loopback, or its undisturbed run does not end.
    """
    deployment = Deployment(folder, out / "state")
    out.mkdir(parents=True, exist_ok=True)
    table = Table.of(out / "kills.json", _made_from(folder))
    if not table.reference:
        e = load_experiment(folder / "server" / "app" / EXPERIMENT)
        if e.rounds < 3 or len(deployment.clients) < 3:
            raise FedMoEError(f"{folder}: a rehearsal needs 3 rounds and 3 clients, or more")
        ledger, _ = _run(deployment, ())
        if not ledger or ledger[-1]["kind"] != "end":
            log = log_tail(deployment.state / "submitted.log")
            raise FedMoEError(f"the undisturbed run did not end:\n{log}")
        table.reference = {
            "seconds": ledger[-1]["seconds"],
            "trace": trace(ledger),
            "adapter_sha256": ledger[-1]["adapter_sha256"],
        }
        table.write()
    for kills in LADDER:
        left = [k for k in kills if table.lacks(k) and k.who in (who or ROLES)][:most]
        if left:
            ledger, outcomes = _run(deployment, left)
            for row in _rows(ledger, outcomes, table.reference):
                table.rows[row.pop("key")] = row
            table.write()
            most = None if most is None else most - len(left)
    print(table.markdown(), end="")


def _run(deployment: Deployment, kills: Sequence[Kill]) -> tuple[list[Record], list[Outcome]]:
    """One run from nothing to its end; all processes are gone afterwards."""
    shutil.rmtree(deployment.state, ignore_errors=True)
    watched = Watched(deployment, kills, MOST_SECONDS)
    try:
        return watched.run(), watched.outcomes
    finally:
        deployment.stop()


def _rows(
    ledger: Sequence[Record], outcomes: Sequence[Outcome], reference: dict[str, Any]
) -> list[dict[str, Any]]:
    ended = bool(ledger) and ledger[-1]["kind"] == "end"
    same = ended and ledger[-1]["adapter_sha256"] == reference["adapter_sha256"]
    same = same and trace(ledger) == reference["trace"]
    differs = None if same else _first_difference(trace(ledger), reference["trace"])
    rows = []
    for outcome in outcomes:
        kill, words = outcome.kill, [*left_out(ledger, outcome.round)]
        if outcome.skipped:
            words = [outcome.skipped]
        elif outcome.recovered_seconds is None:
            words.insert(0, f"did not go on within {MOST_SECONDS:g} s")
        elif outcome.submissions:
            times = f", {outcome.submissions} times" if outcome.submissions > 1 else ""
            words.insert(0, f"went on after the same command{times}")
        else:
            words.insert(0, "went on by itself")
        if outcome.too_late:
            words.append("the update had just arrived")
        rows.append(
            {
                "key": kill.key,
                "who": kill.who,
                "when": kill.when,
                "outcome": "; ".join(words),
                "client": kill.client,
                "seconds": outcome.recovered_seconds,
                "submissions": outcome.submissions,
                "same": _same(outcome, same, differs),
            }
        )
    return rows


def _same(outcome: Outcome, same: bool, differs: int | None) -> str:
    """Whether a kill left the bits as they were, where its run had several kills."""
    if outcome.skipped:
        return ""
    if same or (differs is not None and outcome.round < differs):
        return "yes"
    return "no" if differs == outcome.round else "not known"


def _first_difference(ours: Trace, reference: Trace) -> int | None:
    """The first round in which clients reported something else."""
    return next((int(n) for n in sorted(reference, key=int) if ours.get(n) != reference[n]), None)


def _all() -> list[Kill]:
    return [kill for kills in LADDER for kill in kills]


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _made_from(folder: Path) -> str:
    digest = hashlib.sha256(code_digest().encode())
    for path in sorted((folder / "server" / "app").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
