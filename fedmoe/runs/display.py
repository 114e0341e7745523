"""The base class of everything that shows a run while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedmoe.rounds import Observer
from fedmoe.runs.workers import Watch

if TYPE_CHECKING:
    from fedmoe.evaluation.evaluate import Evaluation


class Display(Observer, Watch):
    """Shows a run while it runs; the methods that a subclass leaves out show nothing.

    It is entered before the first round and left after the last one, or with the error that ended
    the run.
    """

    def evaluated(self, evaluations: Sequence[Evaluation]) -> None:
        """Show the scores of the global adapter at every tier."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the display."""
