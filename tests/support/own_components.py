"""A folder of somebody's own: a strategy, a dataset and a metric, and a config that names them."""

import sys
from contextlib import contextmanager

RULES = '''\
"""A coordinate-wise median, and a metric."""

import torch

from fedmoe.adapter import Adapter
from fedmoe.aggregation import Strategy
from fedmoe.section import section


@section
class Median(Strategy):
    """Half-way between the lower and the upper median, times a step."""

    step: float = 1.0
    """Share of the median that is taken."""

    def combine(self, adapter, updates, num_clients=0):
        deltas = torch.stack([update.delta.flat for update in updates])
        return Adapter(adapter.layout, adapter.flat + self.step * deltas.quantile(0.5, dim=0))


def length(example, answer):
    """Score an answer by its length."""
    return min(1.0, 0.5 + len(answer) / 1000)
'''

DATA = '''\
"""Sums as a dataset; a class without @section."""

from fedmoe.data import Dataset, Example, Splits


class Sums(Dataset):
    def __init__(self, most: int = 12):
        self.most = most

    def load(self, seed: int) -> Splits:
        rows = [
            Example(f"what is {a} plus {b}", f"it is {a + b}", f"by {b % 3}")
            for a in range(self.most)
            for b in range(6)
        ]
        return Splits(tuple(rows[12:]), tuple(rows[:6]), tuple(rows[6:12]))
'''

CONFIG = """\
name: own
rounds: {rounds}
model: {{path: {model}}}
adapter: {{rank: 2}}
data: {{name: my_data:Sums, most: 8}}
partition: {{name: iid, num_clients: 3}}
budget: {{tiers: {{high: {{top_k: 4}}}}}}
training: {{steps: 1, batch_size: 2, probe_examples: 2}}
aggregation: {{name: {strategy}, step: 0.5}}
evaluation:
  {{every: 0, validation_examples: 2, test_examples: 2, max_new_tokens: 2, metric: {metric}}}
simulation: {{folder: {runs}}}
"""


def write_components(folder):
    """Write the two modules into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_rules.py").write_text(RULES)
    (folder / "my_data.py").write_text(DATA)
    return folder


def write_config(
    folder, model, rounds=1, strategy="my_rules:Median", metric="my_rules:length", **changes
):
    """Write a config that names the components."""
    path = folder / "own.yaml"
    path.write_text(
        CONFIG.format(
            model=model, rounds=rounds, strategy=strategy, metric=metric, runs=folder / "runs"
        )
    )
    return path


def install(folder, entry_points, version="1.2", name="my-rules"):
    """Make a folder on the import path look like an installed package with entry points."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "top_level.txt").write_text("my_rules\nmy_data\n")
    lines = []
    for group, points in entry_points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return info


@contextmanager
def on_path(folder):
    """Import from a folder while the context lasts, and forget its modules afterwards."""
    sys.path.insert(0, str(folder))
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            if str(folder) in str(getattr(module, "__file__", "")):
                del sys.modules[name]
