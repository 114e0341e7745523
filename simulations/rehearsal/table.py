"""What came of each kill, by comparison with an undisturbed run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmoe.report.ledger import Record
from simulations.rehearsal.kills import Kill
from simulations.rehearsal.processes import RESTART_SECONDS

SAID = {
    "client": ("client", "status", "tokens", "loss_before", "loss_after"),
    "evaluation": ("split", "tier", "examples", "loss", "score"),
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
    """What came of one kill."""

    kill: Kill
    round: int
    """The round under way."""
    seconds: float | None = None
    """Until the run was further than at the kill; None if it never was."""
    submissions: int = 0
    """How often the run had to be submitted again."""
    skipped: str = ""
    """Why the process was not killed, if it was not."""
    too_late: bool = False
    """Whether the update that was on its way had arrived when the process was dead."""

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
        words += [
            f"client {r['client']} left out of round {self.round}: {r['reason']}"
            for r in ledger
            if r["kind"] == "client" and r["round"] == self.round and r["status"] == "failed"
        ]
        return "; ".join([*words, *(["the update had just arrived"] if self.too_late else [])])


def rows_of(
    ledger: Sequence[Record], outcomes: Sequence[Outcome], reference: Sequence[Record]
) -> list[str]:
    """Return a run's lines of the table.

    Where a run had several kills, the last one before the first difference is to blame.
    """
    ours, theirs = trace(ledger), trace(reference)
    ended = bool(ledger) and ledger[-1]["kind"] == "end"
    same = ended and ledger[-1]["adapter_sha256"] == reference[-1]["adapter_sha256"]
    rounds = sorted(theirs, key=int)
    differs = next((int(n) for n in rounds if ours.get(n) != theirs[n]), None)
    lines = []
    for found in outcomes:
        harmless = same if differs is None else found.round < differs
        said = "yes" if harmless else "no" if found.round == differs else "not known"
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


def trace(ledger: Sequence[Record]) -> dict[str, str]:
    """Return by round what each client reported and what was scored, without times.

    Unlike adapters give unlike losses.
    """
    found: dict[str, str] = {}
    for record in ledger:
        if record["kind"] in SAID:
            words = " ".join(str(record.get(name)) for name in SAID[record["kind"]])
            key = str(record["round"])
            found[key] = f"{found[key]}; {words}" if key in found else words
    return found
