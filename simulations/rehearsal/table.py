"""The outcome of each kill, by comparison with an undisturbed run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedmoe.report.ledger import Record
from simulations.rehearsal.kills import Kill
from simulations.rehearsal.processes import RESTART_SECONDS

SAID = {
    "client": ("round", "client", "status", "tokens", "loss_before", "loss_after"),
    "evaluation": ("round", "split", "tier", "examples", "loss", "score"),
}
HEAD = """\
# What came of kills

`python -m simulations.rehearsal` killed {who}, with SIGKILL. What systemd would start again was
started again after {restart:g} s; where the run itself had died, it was submitted again by the same
command. Seconds are from the kill until the run was further than before. The undisturbed run took
{seconds:.0f} s and ended with adapter `{digest}`. Where the result is the same, so are the adapter,
bit for bit, and in the ledger all that clients reported and all scores.

| killed | when | what happened | s | same result |
|---|---|---|--:|---|
"""


@dataclass
class Outcome:
    """The outcome of one kill."""

    kill: Kill
    round: int
    """The round under way."""
    seconds: float | None = None
    """Until the run was further than at the kill; None if it never was."""
    submissions: int = 0
    """Number of times the run had to be submitted again."""
    skipped: str = ""
    """Why the process was not killed, if it was not."""

    def words(self, ledger: Sequence[Record]) -> str:
        """Return what happened, and which clients the round did without."""
        if self.skipped:
            return self.skipped
        if self.seconds is None:
            words = ["did not resume"]
        elif self.submissions:
            times = f", {self.submissions} times" if self.submissions > 1 else ""
            words = [f"resumed after the same command{times}"]
        else:
            words = ["resumed by itself"]
        left_out = [
            f"client {r['client']} left out of round {self.round}: {r['reason']}"
            for r in ledger
            if r["kind"] == "client" and r["round"] == self.round and r["status"] == "failed"
        ]
        return "; ".join([*words, *left_out])


def rows_of(
    ledger: Sequence[Record], outcomes: Sequence[Outcome], reference: Sequence[Record]
) -> list[str]:
    """Return a run's lines of the table, all with its result."""
    digest = ledger[-1].get("adapter_sha256") if ledger else None
    same = digest == reference[-1]["adapter_sha256"] and trace(ledger) == trace(reference)
    lines = []
    for found in outcomes:
        said = "yes" if same else "no"
        seconds = "" if found.seconds is None else f"{found.seconds:.0f}"
        cells = [found.kill.who, found.kill.when, found.words(ledger), seconds]
        lines.append(f"| {' | '.join([*cells, '' if found.skipped else said])} |\n")
    return lines


def page(rows: Sequence[str], reference: Sequence[Record]) -> str:
    """Return the table with what it shows."""
    who = ", ".join(dict.fromkeys(row.split(" | ")[0].removeprefix("| ") for row in rows))
    end = reference[-1]
    seconds, digest = end["seconds"], end["adapter_sha256"][:16]
    head = HEAD.format(who=who, restart=RESTART_SECONDS, seconds=seconds, digest=digest)
    return head + "".join(rows)


def trace(ledger: Sequence[Record]) -> list[list[Any]]:
    """Return what each client reported and what was scored, in order, without times.

    Unlike adapters give unlike losses.
    """
    return [[r.get(name) for name in SAID[r["kind"]]] for r in ledger if r["kind"] in SAID]
