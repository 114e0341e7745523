"""The base class of everything that shows a run while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Self

from fedmoe.rounds import Observer
from fedmoe.runs.workers import Watch

if TYPE_CHECKING:
    from fedmoe.config import Experiment
    from fedmoe.evaluation.evaluate import Evaluation
    from fedmoe.messages.records import Failure, Task
    from fedmoe.messages.rows import RowCounts
    from fedmoe.runs.roster import Attendance
    from fedmoe.training.steps import Steps


class Display(Observer, Watch):
    """Shows a run while it runs; the methods that a subclass leaves out show nothing.

    It is entered before the first round and left after the last one, or with the error that ended
    the run.
    """

    def begun(self, what: str, done: int = 0, total: int = 0) -> None:
        """Show what the run does before its first round or between two, and how far it is."""

    def loading(self, experiment: Experiment) -> AbstractContextManager[object]:
        """Show what is known before the model and the data are loaded, while they are."""
        self.begun("loading the model and the data")
        return nullcontext()

    def follow(self, steps: Steps) -> None:
        """Show from now on how far clients in training are."""

    def noted(self, notes: Sequence[str]) -> None:
        """Show what is to be said of the run before its first round, in sentences."""

    def resumed(self, round: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Show where an interrupted run continues, from the lines of its ledger."""

    def met(self, attendance: Attendance) -> None:
        """Show who is there in a round, where clients come and go."""

    def unscored(self, task: Task, failure: Failure, split: str) -> None:
        """Show that a client was asked for scores and could give none."""

    def withheld(self, tasks: Sequence[Task], split: str) -> None:
        """Show which clients do not report their scores."""

    def accounted(self, rows: Mapping[int, tuple[str, RowCounts]]) -> None:
        """Show clients' accounts of their own rows: names and counts by number."""

    def evaluated(self, evaluations: Sequence[Evaluation]) -> None:
        """Show the scores of the global adapter at every tier."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the display."""
