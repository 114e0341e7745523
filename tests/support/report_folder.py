"""Makes the folder of an invented run, as a run would leave it, to report on."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fedmoe.devices import Device
from fedmoe.devices.clock import client_time
from fedmoe.report import Ledger
from fedmoe.report.plots import PLOTS
from fedmoe.report.run import read_run
from fedmoe.system.files import write_json, write_text

TIERS = {"large": 8, "tiny": 1, "medium": 4, "small": 2}
"""Not by `top_k`: a report must put them in order itself."""
DEVICES = {
    tier: Device(
        label=f"board {k}",
        peak_flops=1e11 * k,
        memory_bytes=10**9,
        latency_seconds=0.1,
        downlink_bytes_per_second=1e7,
        uplink_bytes_per_second=1e6,
    )
    for tier, k in TIERS.items()
}
LAYERS, EXPERTS, LABELS = 4, 16, ("HassTurnOn", "HassTurnOff", "HassLightSet", "HassGetState")


def make_run(
    folder: Path, *, num_clients: int = 10, num_rounds: int = 12, finished: int | None = None
) -> Path:
    """A run that was interrupted after `finished` rounds, or ended; client 3 fails in round 2."""
    rng = np.random.default_rng(0)
    done = num_rounds if finished is None else finished
    folder.mkdir(parents=True, exist_ok=True)
    with Ledger(folder / "ledger.jsonl") as ledger:
        ledger.append(_header(num_clients, num_rounds))
        for tier, k in TIERS.items():
            ledger.append(_evaluation(rng, 0, "test", tier, k, num_rounds))
        for number in range(1, done + 1):
            for client in range(num_clients):
                ledger.append(_client(rng, number, client))
            virtual = {"virtual_seconds": 8.0, "virtual_clock": 8.0 * number}
            for tier, k in TIERS.items():
                ledger.append(_evaluation(rng, number, "validation", tier, k, num_rounds))
            ledger.append(
                {
                    "kind": "round",
                    "round": number,
                    "seconds": 14.2,
                    "clients": 10,
                    "failed": 0,
                    "tokens": 40_000,
                    "workers": 2,
                    "busy_seconds": 25.0,
                    "ideal_seconds": 12.5,
                    "makespan_seconds": 13.75,
                    **virtual,
                }
            )
        if finished is None:
            for tier, k in TIERS.items():
                ledger.append(_evaluation(rng, num_rounds, "test", tier, k, num_rounds))
            ledger.append(_end())
    _other_files(folder, rng, num_clients, done)
    return folder


def _other_files(folder: Path, rng: np.random.Generator, num_clients: int, done: int) -> None:
    clients = []
    for client in range(num_clients):
        counts = (rng.dirichlet([0.4] * len(LABELS)) * 500).astype(int).tolist()
        labels = dict(zip(LABELS, counts, strict=True))
        clients.append({"client": client, "num_examples": sum(counts), "labels": labels})
    write_json(folder / "manifest.json", {"num_examples": 5000, "clients": clients})
    write_json(folder / "environment.json", {"python": "3.11.2", "torch": "2.12.0", "threads": "2"})
    write_text(
        folder / "config.yaml",
        "name: home\nrounds: 12\nbudget:\n  levels: {tiny: 1, small: 2}\n  country: no\n"
        "training:\n  learning_rate: 1e-3\n  stops: [a, b]\n",
    )
    if done:
        popular = rng.lognormal(0, 0.7, size=(LAYERS, EXPERTS))
        load = popular * rng.lognormal(0, 0.4, size=(num_clients, LAYERS, EXPERTS))
        counts = (load * 400 * done).astype(np.int64)
        counts[:, 1, 5] = 0
        np.savez_compressed(folder / "activations.npz", by_round=counts[:done], by_client=counts)


def _tier_of(client: int) -> str:
    return list(TIERS)[client % len(TIERS)]


def _header(num_clients: int, num_rounds: int) -> dict:
    tiers = {
        name: {
            "top_k": k,
            "clients": [c for c in range(num_clients) if _tier_of(c) == name],
            "parameters": 8_000_000 + 900_000 * k,
            "bytes_down": 3_150_000,
            "bytes_up": 3_152_000,
            "train_flops_per_token": 2.1e7 + 0.9e7 * k,
            "memory_bytes": 300_000_000 * k,
            "device": asdict(DEVICES[name]),
        }
        for name, k in TIERS.items()
    }
    return {
        "kind": "run",
        "name": "home <federated> & friends",
        "seed": 7,
        "num_rounds": num_rounds,
        "num_clients": num_clients,
        "clients_per_round": num_clients,
        "model": "builtin:small-moe",
        "strategy": "flame",
        "rescaling": "learned",
        "full_top_k": 8,
        "tiers": tiers,
    }


def _client(rng: np.random.Generator, number: int, client: int) -> dict:
    tier = _tier_of(client)
    k = TIERS[tier]
    line = {"kind": "client", "round": number, "client": client, "tier": tier, "top_k": k}
    if (number, client) == (2, 3):
        return line | {"status": "failed", "reason": "delta has a value of <inf> & more"}
    tokens = int(rng.integers(3000, 5000))
    before = 2.4 * np.exp(-number / 5) + 0.4 + 0.3 / k + rng.normal(0, 0.05)
    line |= {
        "status": "ok",
        "examples": 500,
        "tokens": tokens,
        "steps": 32,
        "loss_before": float(before),
        "loss_after": float(before * 0.8),
        "seconds": tokens * (2e-4 + 3e-5 * k),
        "peak_bytes": 410_000_000 + 21_000_000 * k,
        "bytes_down": 3_150_000,
        "bytes_up": 3_152_000,
        "flops": tokens * (2.1e7 + 0.9e7 * k),
        "probe_flops": 1e9,
        "virtual_bytes_up": 3_151_900,
    }
    return line | {"virtual_seconds": client_time(DEVICES[tier], line).seconds}


def _evaluation(
    rng: np.random.Generator, number: int, split: str, tier: str, k: int, num_rounds: int
) -> dict:
    reached = 1 - np.exp(-3.0 * number / num_rounds)
    score = float(np.clip(0.02 + (0.7 + 0.03 * k) * reached + rng.normal(0, 0.01), 0, 1))
    return {
        "kind": "evaluation",
        "round": number,
        "split": split,
        "tier": tier,
        "top_k": k,
        "loss": 2.9 * (1 - reached) + 0.5 + 0.3 / k,
        "score": score,
        "metric": "exact_match",
        "examples": 400,
        "seconds": 3.0,
        "by_label": dict.fromkeys(LABELS, score),
    }


def _end() -> dict:
    phases = {"load": 4.1, "training": 170.3, "evaluation": 31.0, "report": 2.2}
    return {
        "kind": "end",
        "seconds": 209.9,
        "phases": phases,
        "training_share": 170.3 / 209.9,
        "adapter_sha256": "9f2c" * 16,
    }


def ledger_lines(folder: Path) -> list[dict]:
    """The ledger as it lies on the disk."""
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def plots_of(folder):
    """The names of the plots that a run has data for; to write them takes three times as long."""
    run = read_run(folder)
    return {name for name, draw in PLOTS.items() if draw(run)}
