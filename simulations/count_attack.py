"""What counts of routed tokens tell of a client: in clear, in sums under masks, and under noise.

A server that knows the model and has rows of the same kind guesses the main domain, or language, of
a client from its counts. It sees them in clear; in the sum of a round; in the sums of many rounds,
of which it knows who took part; or in the noised sums of FLAME's weights, which a private run has
in place of counts. Half of the rows are the attacker's. What came of it: `privacy.md`.

    python -m simulations.count_attack        # takes about two minutes on one core
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmoe import load_experiment
from fedmoe.adapter import Adapter, Layout
from fedmoe.aggregation import Flame
from fedmoe.messages.records import Update
from fedmoe.privacy.accountant import calibrated
from fedmoe.privacy.private_mean import Mechanism, PrivateMean, Tally, even_weights
from fedmoe.privacy.settings import Privacy
from fedmoe.report.text_table import TextTable
from fedmoe.runs.prepare import prepare
from fedmoe.training.loss import mean_loss

CONFIG = Path(__file__).parents[1] / "configs/home_assistant.yaml"
LANGUAGES = "data={name: home_assistant, languages: [en, de, fr, es, it, nl], label: language}"
DATA = {
    "domain": ["data.per_domain=200", "partition={name: natural, num_clients: 9}"],
    "language": [LANGUAGES, "data.per_domain=60", "partition={name: natural, num_clients: 6}"],
}
ROWS, K, CLIENTS, PER_ROUND, ROUNDS, DELTA = 24, 2, 20, 5, 40, 1e-2
LABEL_ROWS, TRAIN, TEST = 60, 800, 200
Pool = list[np.ndarray]
"""By label: the counts of single rows, (rows, layers, experts)."""
Sum = Callable[..., np.ndarray]
"""Makes of the counts of a round's clients what the server sees, with noise or without."""


def row_counts(label: str) -> Pool:
    """Return the counts of single rows of each label, by the base model with K experts a token."""
    prepared = prepare(load_experiment(CONFIG, [*DATA[label], "simulation.workers=1"]))
    model, pad = prepared.setup.model, prepared.setup.tokenizer.pad_token_id
    model.load(prepared.setup.initial)
    model.set_budget(K, torch.ones(model.layout.num_layers))
    pools = []
    for rows in prepared.scorer.client.rows.values():  # of one label each
        found = []
        for place in np.random.default_rng(0).permutation(len(rows))[:LABEL_ROWS]:
            with model.counting() as counts:
                mean_loss(model, [rows[place]], 1, pad)
            found.append(counts.numpy().copy())
        pools.append(np.stack(found))
    return pools


def shares(counts: np.ndarray) -> np.ndarray:
    """Return the root of each expert's part of its layer's tokens, in one row."""
    counts = np.maximum(counts, 0.0)
    return np.sqrt(counts / np.maximum(counts.sum(-1, keepdims=True), 1e-9)).ravel()


def attacker(features: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a classifier: ridge regression onto the labels, the largest of which is the guess."""
    mean, size = features.mean(0), features.std(0) + 1e-9
    x, y = (features - mean) / size, np.eye(labels.max() + 1)[labels]
    found = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ (y - y.mean(0)))
    return lambda seen: ((seen - mean) / size @ found).argmax(1)


def weights_of(epsilon: float, layers: int, experts: int) -> Sum:
    """Return the sum of FLAME's weights, clipped and, if wanted, noised as in a private run."""
    layout, strategy = Layout((), layers, experts, 1, 1.0), Flame(temperature=1.0)
    privacy = Privacy(epsilon=epsilon, delta=DELTA, clip=1.0, denominators="noised", most_size=ROWS)
    probability = PER_ROUND / CLIENTS
    noise = calibrated(epsilon, DELTA, probability, ROUNDS)
    even = even_weights(strategy, privacy, [K], layout)
    mean = PrivateMean(strategy, Mechanism(privacy, noise, probability, PER_ROUND, even), 1.0)
    nothing, ones, zero = Adapter(layout, torch.zeros(0)), torch.ones(layers), torch.zeros(0)
    names = ("steps", "seconds", "loss_before", "loss_after", "peak_bytes")
    fixed = dict.fromkeys(names, 1)

    def added(each: list[np.ndarray], noise: bool = True) -> np.ndarray:
        tally = Tally(torch.zeros_like(even))
        for found in each:
            report: dict[str, Any] = {**fixed, "examples": ROWS, "tokens": int(found[0].sum()) // K}
            counts = torch.from_numpy(found)
            mean.weigh(Update(1, 0, "", K, ones, nothing, counts, **report), tally)
        if noise:
            mean.add_noise(zero.double(), tally)
        return tally.weights[:-1].numpy().reshape(layers, experts)

    return added


def guessed(pool: Pool, added: Sum) -> list[float]:
    """Return the share of right guesses from one client's, one round's and all rounds' sums."""
    rng = np.random.default_rng(1)

    def draw(mix: np.ndarray, half: int) -> np.ndarray:
        labels = rng.choice(len(mix), size=ROWS, p=mix)
        return np.sum([pool[n][2 * rng.integers(len(pool[n]) // 2) + half] for n in labels], axis=0)

    def mixes(number: int) -> np.ndarray:
        return rng.dirichlet(np.full(len(pool), 0.5), size=number)

    def seen(half: int, others: int, noise: bool = True) -> tuple[np.ndarray, np.ndarray]:
        mine = mixes(TEST if half else TRAIN)
        rounds = ([draw(m, half) for m in (first, *mixes(others))] for first in mine)
        return np.stack([shares(added(each, noise)) for each in rounds]), mine.argmax(1)

    right = []
    for others in (0, PER_ROUND - 1):
        guess, (x, y) = attacker(*seen(0, others)), seen(1, others)
        right.append(float((guess(x) == y).mean()))
    guess, hits = attacker(*seen(0, 0, noise=False)), []
    for _ in range(TEST // CLIENTS):
        owners = mixes(CLIENTS)
        took = np.stack([rng.permutation(CLIENTS) < PER_ROUND for _ in range(ROUNDS)])
        sums = np.stack([added([draw(owners[c], 1) for c in np.flatnonzero(t)]) for t in took])
        each = np.linalg.lstsq(took * 1.0, sums.reshape(ROUNDS, -1), rcond=None)[0]
        found = np.stack([*map(shares, each.reshape(CLIENTS, *sums.shape[1:]))])
        hits.append((guess(found) == owners.argmax(1)).mean())
    return [*right, float(np.mean(hits))]


def main() -> None:
    """Print a row for each label and view."""
    rows = []
    for label in sys.argv[1:] or DATA:
        pool = row_counts(label)
        views: dict[str, Sum] = {"counts": lambda each, noise=True: np.sum(each, axis=0)}
        for epsilon in (32, 8):
            views[f"noised weights, epsilon {epsilon}"] = weights_of(epsilon, *pool[0].shape[1:])
        for view, added in views.items():
            found = [*guessed(pool, added), 1 / len(pool)]
            rows.append([label, view, *(f"{100 * x:.0f} %" for x in found)])
    columns = ["of", "the server sees", "one client", "a round's sum", "all rounds' sums", "chance"]
    print("\n".join(TextTable("", columns, rows).markdown()))


if __name__ == "__main__":
    main()
