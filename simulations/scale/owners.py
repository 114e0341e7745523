"""A thousand owners' files, fifty a round: what grows with the owners, and who is read when.

    python -m simulations.scale.owners                  (two minutes on 2 CPU cores; 1 GB)
    python -m simulations.scale.owners --owners 100     (one run, in this process)

Each owner is a file of 20 rows. An audit hook notes every file that this process opens; the run's
events say whose turn it was. What came of it: `README.md`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import fedmoe
from fedmoe.evaluation.evaluate import Evaluation
from fedmoe.messages.records import Failure, Task, Update
from fedmoe.runs.display import Display
from fedmoe.runs.roster import Attendance
from fedmoe.seeds import numpy_rng

ROWS = 20
SETTINGS = """\
name: owners
rounds: 3
clients_per_round: 50
data: {{name: federated, path: {rows}}}
budget: {{tiers: {{high: {{top_k: 8}}, low: {{top_k: 1}}}}}}
training: {{steps: 2, batch_size: 4}}
evaluation: {{clients: 10, max_new_tokens: 8, metric: exact_match}}
simulation: {{folder: {runs}}}
"""


def write_rows(folder: Path, owners: int) -> None:
    """Write a file of rows for each owner."""
    rooms, things = ("attic", "kitchen", "hall", "cellar"), ("lamp", "heater", "fan", "blind")
    folder.mkdir()
    for owner in range(owners):
        rng = numpy_rng(0, "owner", owner)
        lines = []
        for number in range(ROWS):
            room, thing = rng.choice(rooms), rng.choice(things)
            said = {"prompt": f"turn on the {thing} {number} in the {room}"}
            lines.append(json.dumps(said | {"response": f"turn_on({thing}_{number}, {room})"}))
        (folder / f"owner-{owner:04}.jsonl").write_text("\n".join(lines))


class Turns(Display):
    """Notes whose file is opened between which events of a run, and how long rounds take."""

    def __init__(self, folder: Path) -> None:
        self.folder = f"{folder}/"
        self.opened: list[str] = []
        """Owners whose files were opened since the last event."""
        self.early: list[str] = []
        """Owners whose files were opened at another's turn."""
        self.read: list[int] = []
        """Files opened to train on, by round."""
        self.scored = 0
        """Files opened to score."""
        self.ends: list[float] = []

    def note(self, event: str, arguments: tuple[object, ...]) -> None:
        """Note an event of Python's audit hooks."""
        if event == "open" and str(arguments[0]).startswith(self.folder):
            self.opened.append(Path(str(arguments[0])).stem)

    def met(self, attendance: Attendance) -> None:
        self._opened(set())

    def planned(self, tasks: Sequence[Task]) -> None:
        self._opened(set())
        self.read.append(0)

    def answered(self, task: Task, answer: Update | Failure) -> None:
        assert isinstance(answer, Update), answer
        self.read[-1] += self._opened({task.name})

    def finished(self, state: object) -> None:
        self._opened(set())
        self.ends.append(time.process_time())

    def evaluated(self, evaluations: Sequence[Evaluation]) -> None:
        self.scored += self._opened({c.name for e in evaluations for c in e.clients})

    def _opened(self, turn: set[str]) -> int:
        opened, self.opened = self.opened, []
        self.early += [name for name in opened if name not in turn]
        return len(opened)


@contextmanager
def watched(turns: Turns) -> Iterator[None]:
    """Show a run's turns every file that is opened; Python keeps the hook for good."""
    active = [True]
    sys.addaudithook(lambda event, args: turns.note(event, args) if active else None)
    yield
    active.clear()


def one(owners: int) -> dict[str, object]:
    """Return the figures of one run in this process."""
    with tempfile.TemporaryDirectory() as place:
        rows, config = Path(place) / "rows", Path(place) / "owners.yaml"
        write_rows(rows, owners)
        config.write_text(SETTINGS.format(rows=rows, runs=Path(place) / "runs"))
        turns, started = Turns(rows), time.process_time()
        with watched(turns):
            fedmoe.run(config, display=turns)
        seconds = time.process_time() - started
    pairs = zip(turns.ends[1:], turns.ends, strict=False)
    return {
        "owners": owners,
        "seconds a round": min(after - before for after, before in pairs),
        "seconds in all": seconds,
        "files opened by round": turns.read,
        "files opened to score": turns.scored,
        "opened before their turn": len(turns.early),
        "peak RSS in MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def main() -> None:
    """Print the figures of 100 and of 1,000 owners, each measured in a process for itself."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--owners", type=int, help="Measure this number alone, in this process")
    if (owners := parser.parse_args().owners) is not None:
        print(json.dumps(one(owners)))
        return
    for number in (100, 1000):
        subprocess.run([sys.executable, "-m", __spec__.name, "--owners", str(number)], check=True)


if __name__ == "__main__":
    main()
