"""Each client's data in numbers and hashes: proof that two runs used the same partition."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedmoe.data.examples import Example
from fedmoe.messages.rows import RowCounts


def manifest(examples: Sequence[Example], parts: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return what `parts` of `examples` hold, ready for JSON.

    `sha256` is over the sorted prompts of a client, so it does not depend on their order; of
    conversations it covers every message.
    """
    clients = []
    for client, part in enumerate(parts):
        rows = [examples[row] for row in part]
        prompts = json.dumps(
            sorted(row.conversation or row.prompt for row in rows), ensure_ascii=False
        )
        clients.append(
            {
                "client": client,
                "num_examples": len(rows),
                "labels": dict(sorted(Counter(row.label for row in rows).items())),
                "sha256": hashlib.sha256(prompts.encode()).hexdigest(),
            }
        )
    return {"num_examples": sum(c["num_examples"] for c in clients), "clients": clients}


def accounts_manifest(rows: Mapping[int, RowCounts], names: Mapping[int, str]) -> dict[str, Any]:
    """Return what clients said of their own rows, ready for JSON."""
    clients = [
        {
            "client": client,
            "name": names.get(client, str(client)),
            "num_examples": counts.train,
            "labels": {},
            "rows": counts.as_json(),
        }
        for client, counts in sorted(rows.items())
    ]
    return {
        "num_examples": sum(counts.train for counts in rows.values()),
        "rows": RowCounts.total(rows.values()).as_json(),
        "clients": clients,
    }


def manifest_rows(manifest: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the manifest as columns and rows: a row per client, a column per label.

    Examples without a label are those of `no label`, unless all are.
    """
    clients = manifest["clients"]
    labels = sorted({label for client in clients for label in client["labels"]})
    labels = [] if labels == [""] else labels
    rows = []
    for client in clients:
        counts = [str(client["labels"].get(label, "")) for label in labels]
        start = [str(client["client"]), str(client["num_examples"])]
        rows.append([*start, *counts, client["sha256"][:8]])
    return ["client", "examples", *(label or "no label" for label in labels), "sha256"], rows
