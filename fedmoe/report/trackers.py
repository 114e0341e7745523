"""Export of a run's ledger to an experiment tracker: TensorBoard, trackio, MLflow or W&B.

A tracker reads what the run has written, afterwards or meanwhile, in a separate process: it cannot
change or delay a run, and one that fails costs nothing. None of them is needed; each keeps its
data on this machine unless its environment variables say otherwise.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol, get_args

from fedmoe.errors import FedMoEError
from fedmoe.report.fields import LIVE
from fedmoe.report.ledger import Record, follow_ledger, read_ledger
from fedmoe.report.own_metrics import metric_means

TrackerName = Literal["tensorboard", "trackio", "mlflow", "wandb"]
PROJECT = "fedmoe"
MOST_CLIENTS = 20
"""With more clients their curves are left out: nobody reads a thousand of them."""
MOST_LETTERS = 240
"""Of a name, without a number that tells it from others."""
OF_CLIENT = (*(field.name for field in LIVE), "virtual_seconds", "bytes_up")
METRICS = "metrics"
"""Prefix of own metrics: `client/3/metrics/NAME`, and their mean as `round/metrics/NAME`."""


class Tracker(Protocol):
    """Takes a run's numbers, in the order of its ledger."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record values by name at a round."""

    def close(self) -> None:
        """Finish the record."""


class TensorBoard:
    """Event files in the run's folder, for `tensorboard --logdir`."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, str]) -> None:
        _module("tensorboard")
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self.writer = writer(str(folder / "tensorboard"))
        lines = [f"    {key}: {value}" for key, value in settings.items()]  # as code, in Markdown
        self.writer.add_text("settings", "\n".join(lines), 0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Trackio:
    """A local trackio project, for `trackio show`."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, str]) -> None:
        self.trackio = _module("trackio")
        self.trackio.init(project=PROJECT, name=name, config=dict(settings))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.trackio.log(dict(metrics), step=step)

    def close(self) -> None:
        self.trackio.finish()


class MLflow:
    """A run of MLflow, at `MLFLOW_TRACKING_URI` or else in a database in the run's folder."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, str]) -> None:
        self.mlflow = _module("mlflow")
        if "MLFLOW_TRACKING_URI" not in os.environ:
            self.mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        self.mlflow.set_experiment(PROJECT)
        self.mlflow.start_run(run_name=name)
        self.mlflow.log_params(dict(settings))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        self.mlflow.end_run()


class WandB:
    """A run of Weights & Biases, offline in the run's folder unless `WANDB_MODE` is set."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, str]) -> None:
        mode = os.environ.get("WANDB_MODE", "offline")
        self.run = _module("wandb").init(
            project=PROJECT, name=name, config=dict(settings), dir=str(folder), mode=mode
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, str]], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "mlflow": MLflow,
    "wandb": WandB,
}


class Names:
    """Gives names that every tracker takes: a tier, or an own metric, may be called anything.

    MLflow takes few characters, at most 250, and no path that has a shorter form.

    >>> plain = Names()
    >>> plain("test/k=4/loss"), plain("test/k(4/loss"), plain("test/k=4/loss"), plain("a/../b")
    ('test/k_4/loss', 'test/k_4/loss-2', 'test/k_4/loss', 'a/_/b')
    """

    def __init__(self) -> None:
        self.given: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        if name not in self.given:
            parts = (re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/"))
            plain = "/".join("_" if part.strip(" .") == "" else part for part in parts)
            plain = plain if len(plain) <= MOST_LETTERS else plain[-MOST_LETTERS:].lstrip("/")
            taken, numbered, number = {*self.given.values()}, plain, 1
            while numbered in taken:
                number += 1
                numbered = f"{plain}-{number}"
            self.given[name] = numbered
        return self.given[name]


def track(folder: Path, name: TrackerName, *, follow: bool = False) -> int:
    """Export everything in a run's ledger to a tracker, and return the number of values.

    Args:
        follow: continue until the run's end, however long that takes.

    Raises:
        FedMoEError: no run in the folder, a damaged ledger, or the tracker is not installed.
    """
    from fedmoe.report.run import read_run

    run, plain = read_run(folder), Names()
    settings = {plain(key): value for key, value in run.settings.items()}
    tracker, number = TRACKERS[name](folder, run.header["name"], settings), 0
    try:
        ledger = folder / "ledger.jsonl"
        for step, metrics in _steps(follow_ledger(ledger) if follow else read_ledger(ledger)):
            tracker.log(step, {plain(name): value for name, value in metrics.items()})
            number += len(metrics)
    finally:
        tracker.close()
    return number


def metrics_of(record: Record, *, clients: bool) -> dict[str, float]:
    """Return a ledger line's numbers by name, such as `test/high/score` or `client/3/seconds`.

    A value that was not finite is null in the ledger, and left out here.

    >>> metrics_of({"kind": "round", "round": 1, "seconds": 9.5, "failed": 0}, clients=True)
    {'round/seconds': 9.5, 'round/failed': 0.0}
    """
    match record["kind"]:
        case "evaluation":
            others = record.get("metrics") or {}
            prefix, record = f"{record['split']}/{record['tier']}", {**record, **others}
            names = ("score", *others, "loss")
        case "round":
            prefix, names = "round", [key for key in record if key not in ("kind", "round")]
        case "client" if clients and record["status"] == "ok":
            own = {f"{METRICS}/{name}": v for name, v in record.get(METRICS, {}).items()}
            record = {**record, **own}
            prefix, names = f"client/{record['client']}", (*OF_CLIENT, *own)
        case "end":
            prefix, names = "run", ("seconds", "training_share")
        case _:
            return {}
    found = {f"{prefix}/{name}": record.get(name) for name in names}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _steps(records: Iterable[Record]) -> Iterator[tuple[int, dict[str, float]]]:
    step, clients = 0, True
    lines: dict[int, Record] = {}
    for record in records:
        match record["kind"]:
            case "run":
                clients = record["num_clients"] <= MOST_CLIENTS
            case "client":
                lines[record["client"]] = record
            case "round":
                means = metric_means(lines.values())
                record = {**record, **{f"{METRICS}/{name}": v for name, v in means.items()}}
                lines.clear()
            case "resumed":
                lines.clear()
        step = record.get("round", step)
        if metrics := metrics_of(record, clients=clients):
            yield step, metrics


def _module(name: TrackerName) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        names = ", ".join(n for n in get_args(TrackerName) if importlib.util.find_spec(n))
        raise FedMoEError(
            f"{name} cannot be imported ({error}); install it (pip install {name}), or use another "
            f"tracker. Installed here: {names or 'none'}"
        ) from None
