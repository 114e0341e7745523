"""A run's folder as plain values: scores, losses, ledger, and its adapter to export or to ask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedmoe.config import Experiment
from fedmoe.config.paths import saved_experiment
from fedmoe.errors import FedMoEError
from fedmoe.export.exported import Exported
from fedmoe.export.generate import Generator
from fedmoe.export.loaded import FULL, load_run
from fedmoe.export.saved import SavedRun
from fedmoe.report.ledger import Record, read_ledger
from fedmoe.report.run import Run, read_run


@dataclass(frozen=True)
class RunResults:
    """The results of a finished, interrupted or running run, read from its folder.

    Example:
        >>> run = fedmoe.open_run("runs/quickstart")  # doctest: +SKIP
        >>> run.scores["high"]  # doctest: +SKIP
        0.5
    """

    folder: Path

    @property
    def report(self) -> Path:
        """The run's offline page."""
        return self.folder / "report.html"

    @property
    def experiment(self) -> Experiment:
        """The experiment as it was run."""
        return saved_experiment(self.folder)

    @property
    def ledger(self) -> list[Record]:
        """Every line of the ledger: one per client-round, round and evaluation."""
        return read_ledger(self.folder / "ledger.jsonl")

    @property
    def complete(self) -> bool:
        """Return whether the run reached its end."""
        return self._run.complete

    @property
    def scores(self) -> dict[str, float]:
        """Each tier's last test score, from 0 to 1; a validation score where there is no other."""
        return {tier: line["score"] for tier, line in self._last.items()}

    @property
    def losses(self) -> dict[str, float]:
        """Each tier's loss beside its score, in nats per response token."""
        return {tier: line["loss"] for tier, line in self._last.items()}

    @property
    def evaluations(self) -> list[Record]:
        """Every evaluation: round, split, tier, top_k, loss, score."""
        return self._run.evaluations

    def to_pandas(self) -> Any:
        """Return the evaluations as a pandas DataFrame.

        Raises:
            FedMoEError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise FedMoEError("to_pandas needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.evaluations)

    def export(self, out: Path | str, *, which: str = "last", **options: Any) -> Exported:
        """Write the adapter in a folder that proves itself; see `SavedRun.export`."""
        return SavedRun.open(self.folder, which).export(Path(out), **options)

    def generate(self, prompt: str, *, tier: str | None = None, max_new_tokens: int = 64) -> str:
        """Return the adapter's answer to a prompt, at a tier's k or at the model's.

        Raises:
            FedMoEError: there is no such tier, or no adapter.
        """
        loaded = load_run(self.folder, only=[tier or FULL])
        loaded.use(tier or FULL)
        generator = Generator(loaded.model, loaded.tokenizer, loaded.text)
        return generator.answer(prompt, max_new_tokens).text

    @cached_property
    def _run(self) -> Run:
        return read_run(self.folder)

    @cached_property
    def _last(self) -> dict[str, Record]:
        """Each tier's last evaluation on test data, or on validation data."""
        found: dict[str, Record] = {}
        for split in ("validation", "test"):
            for tier in self._run.tiers:
                if curve := self._run.curve(split, tier.name):
                    found[tier.name] = curve[-1]
        return found
