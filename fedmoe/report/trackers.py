"""A run's ledger told again to an experiment tracker: TensorBoard, trackio, MLflow or W&B.

A tracker reads what the run has written down, afterwards or meanwhile, in a process of its own: it
cannot change or delay a run, and one that fails costs nothing. None of them is needed; each stays
on this machine unless its own environment variables say otherwise.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol, get_args

from fedmoe.errors import FedMoEError
from fedmoe.report.ledger import Record, read_ledger

TrackerName = Literal["tensorboard", "trackio", "mlflow", "wandb"]
PROJECT = "fedmoe"
MOST_CLIENTS = 20
"""Clients beyond which their own curves are left out: nobody reads a thousand of them."""
OF_CLIENT = ("loss_before", "loss_after", "seconds", "virtual_seconds", "tokens", "bytes_up")


class Tracker(Protocol):
    """Takes a run's numbers, in the order of its ledger."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


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
    """A run of MLflow: where `MLFLOW_TRACKING_URI` says, else in a database in the run's folder."""

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
    """A run of Weights & Biases: offline in the run's folder unless `WANDB_MODE` says otherwise."""

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


def track(folder: Path, name: TrackerName, *, follow: bool = False) -> int:
    """Tell a tracker everything in a run's ledger; the number of values it was told.

    Args:
        folder: a run's folder.
        name: which tracker.
        follow: go on until the run's end, however long that takes.

    Raises:
        FedMoEError: no run in the folder, a damaged ledger, or the tracker is not installed.
    """
    from fedmoe.report.run import read_run

    run = read_run(folder)
    tracker, told = TRACKERS[name](folder, run.header["name"], run.settings), 0
    try:
        for step, metrics in _steps(_records(folder / "ledger.jsonl", follow)):
            tracker.log(step, metrics)
            told += len(metrics)
    finally:
        tracker.close()
    return told


def metrics_of(record: Record, *, clients: bool) -> dict[str, float]:
    """A ledger line's numbers by name: `test/high/score`, `round/seconds`, `client/3/loss_after`.

    A value that was not finite is null in the ledger, and left out here.
    """
    match record["kind"]:
        case "evaluation":
            prefix, names = f"{record['split']}/{record['tier']}", ("score", "exact_match", "loss")
        case "round":
            prefix, names = "round", [key for key in record if key not in ("kind", "round")]
        case "client" if clients and record["status"] == "ok":
            prefix, names = f"client/{record['client']}", OF_CLIENT
        case "end":
            prefix, names = "run", ("seconds", "training_share")
        case _:
            return {}
    found = {f"{prefix}/{name}": record.get(name) for name in names}
    # MLflow takes no other characters in a name.
    return {
        re.sub(r"[^\w.\-/ ]", "_", name): float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _steps(records: Iterator[Record]) -> Iterator[tuple[int, dict[str, float]]]:
    step, clients = 0, True
    for record in records:
        if record["kind"] == "run":
            clients = record["num_clients"] <= MOST_CLIENTS
        step = record.get("round", step)
        if metrics := metrics_of(record, clients=clients):
            yield step, metrics


def _records(path: Path, follow: bool) -> Iterator[Record]:
    seen: list[Record] = []
    while True:
        found = read_ledger(path)
        # A resumed run cuts off what it does again.
        pairs = enumerate(zip(seen, found, strict=False))
        common = next((i for i, (old, new) in pairs if old != new), min(len(seen), len(found)))
        yield from found[common:]
        seen = found
        if not follow or (seen and seen[-1]["kind"] == "end"):
            return
        time.sleep(1.0)


def _module(name: TrackerName) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        names = ", ".join(n for n in get_args(TrackerName) if importlib.util.find_spec(n))
        raise FedMoEError(
            f"{name} cannot be imported ({error}); install it (pip install {name}), or use another "
            f"tracker; of those that fedmoe knows there are here: {names or 'none'}"
        ) from None
