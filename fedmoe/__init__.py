"""fedmoe: federated, budget-adaptive fine-tuning of sparse Mixture-of-Experts language models.

Importing it costs no torch: every name is loaded when it is first used.

    run, load_experiment, open_run      a whole run from YAML, and its results
    evaluate                            scores of a run's adapter, or another's, on any data
    Federation, Client, Tier            clients in memory, one round at a time
    LoRA, Training, Experiment          settings
    Strategy, FedAvg, Flame             aggregation; subclass `Strategy` for one of your own
    Task, Update, FedMoEError           what crosses the wire, and the user's mistakes
    aggregation, data, evaluation, export    packages with the rest

In reading order, the way data flows:
    config/       one YAML file becomes one checked `Experiment`
    data/         examples, their partition among clients, and their tokens
    budget/       each client's tier and its `top_k`; the cost of a tier
    models/       the frozen MoE, its expert fast path and its adapter
    training/     one local round of one client: Task -> Update
    messages/     tasks and updates as bytes, compressed and validated
    aggregation/  updates -> the next global adapter, one strategy a file
    rounds.py     the only round loop
    evaluation/   loss and scores for every tier
    runs/         one run: both sides, session, recorder, checkpoint, resume; local workers
    report/       a run's folder as tables, plots and one offline page
    export/       adapters for other programs, and a run's results as values
    federation.py the same from Python, without a file
    cli/          a command a file; comparison/, explain/, watch/, progress/, deploy/ and
                  base_models/ beside it
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmoe import aggregation as aggregation
    from fedmoe import data as data
    from fedmoe import evaluation as evaluation
    from fedmoe import export as export
    from fedmoe.aggregation import FedAvg, Flame
    from fedmoe.aggregation.strategy import Strategy
    from fedmoe.budget import Tier
    from fedmoe.config import Experiment, load_experiment
    from fedmoe.errors import FedMoEError
    from fedmoe.export.evaluated import evaluate
    from fedmoe.federation import Client, Federation, open_run, run
    from fedmoe.messages.records import Task, Update
    from fedmoe.models.adapted import LoRA
    from fedmoe.training.settings import Training

_HOMES = {
    "Client": "fedmoe.federation",
    "Experiment": "fedmoe.config",
    "FedAvg": "fedmoe.aggregation",
    "FedMoEError": "fedmoe.errors",
    "Federation": "fedmoe.federation",
    "Flame": "fedmoe.aggregation",
    "LoRA": "fedmoe.models.adapted",
    "Strategy": "fedmoe.aggregation.strategy",
    "Task": "fedmoe.messages.records",
    "Tier": "fedmoe.budget",
    "Training": "fedmoe.training.settings",
    "Update": "fedmoe.messages.records",
    "evaluate": "fedmoe.export.evaluated",
    "load_experiment": "fedmoe.config",
    "open_run": "fedmoe.federation",
    "run": "fedmoe.federation",
}
_PACKAGES = ("aggregation", "data", "evaluation", "export")

__all__ = [
    "Client",
    "Experiment",
    "FedAvg",
    "FedMoEError",
    "Federation",
    "Flame",
    "LoRA",
    "Strategy",
    "Task",
    "Tier",
    "Training",
    "Update",
    "evaluate",
    "load_experiment",
    "open_run",
    "run",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name in _PACKAGES:
        return import_module(f"fedmoe.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'fedmoe' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    """Return the public names and packages."""
    return sorted([*__all__, *_PACKAGES])
