"""Ledgers of invented runs in every state, written line by line."""

import json
import os
from pathlib import Path

TIERS = {"high": (4, [1, 2]), "low": (1, [0, 3])}


def header(num_rounds=4, per_round=4, **changes):
    """The first line; four clients, in two tiers."""
    tiers = {
        name: {
            "top_k": k,
            "clients": clients,
            "parameters": 10,
            "bytes_down": 100,
            "bytes_up": 90,
            "train_flops_per_token": 1.0,
            "memory_bytes": 1000,
        }
        for name, (k, clients) in TIERS.items()
    }
    return {
        "kind": "run",
        "name": "small",
        "seed": 0,
        "num_rounds": num_rounds,
        "num_clients": 4,
        "clients_per_round": per_round,
        "model": "mini",
        "strategy": "flame",
        "rescaling": "none",
        "upload": "none",
        "full_top_k": 4,
        "tiers": tiers,
        **changes,
    }


def tier_of(client):
    return next(name for name, (_, clients) in TIERS.items() if client in clients)


def answered(number, client, **changes):
    """A client whose update counted."""
    tier = tier_of(client)
    return {
        "kind": "client",
        "round": number,
        "client": client,
        "tier": tier,
        "top_k": TIERS[tier][0],
        "status": "ok",
        "examples": 5,
        "tokens": 50,
        "steps": 2,
        "loss_before": 2.0,
        "loss_after": 1.5,
        "seconds": 2.0,
        "peak_bytes": 1,
        "flops": 1.0,
        "bytes_down": 100,
        "bytes_up": 90,
        **changes,
    }


def failed(number, client, reason, **code):
    """A client whose update was lost or refused."""
    keys = ("kind", "round", "client", "tier", "top_k")
    line = answered(number, client)
    return {key: line[key] for key in keys} | {"status": "failed", "reason": reason, **code}


def scored(number, split, score=0.5, loss=1.0):
    """Both tiers' scores; `high` is 0.1 better."""
    return [
        {
            "kind": "evaluation",
            "round": number,
            "split": split,
            "tier": tier,
            "top_k": k,
            "loss": loss,
            "score": score + 0.1 * (tier == "high"),
            "examples": 10,
            "seconds": 1.0,
            "by_label": {},
        }
        for tier, (k, _) in TIERS.items()
    ]


def ended_round(number, **changes):
    """The line of a finished round."""
    line = {"kind": "round", "round": number, "seconds": 10.0, "tokens": 200, "clients": 4}
    return line | {"failed": 0, **changes}


def whole_round(number):
    """All lines of a round in which everyone answered."""
    clients = [answered(number, c) for c in range(4)]
    return [*clients, ended_round(number), *scored(number, "validation")]


def end():
    return {
        "kind": "end",
        "seconds": 99.0,
        "phases": {},
        "training_share": 0.5,
        "adapter_sha256": "ab" * 32,
    }


def write(folder: Path, *lines, torn="", age=0.0, now=1000.0):
    """A run's folder whose ledger was last written `age` seconds before `now`."""
    folder.mkdir(parents=True, exist_ok=True)
    ledger = folder / "ledger.jsonl"
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    os.utime(ledger, (now - age, now - age))
    return folder
