"""A run's folder as one value: the ledger sorted by kind, and the files beside it."""

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import yaml

from fedmoe.devices import Device
from fedmoe.errors import FedMoEError
from fedmoe.messages.rows import RowCounts
from fedmoe.report.ledger import Record, read_ledger
from fedmoe.report.units import shortened

DAMAGE = (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error, yaml.YAMLError)
MOST_LETTERS = 20
"""Of a name in a plot: a longer one would leave no room for the rest."""


@dataclass(frozen=True)
class TierCost:
    """A budget tier and what one of its clients costs."""

    name: str
    top_k: int
    clients: tuple[int, ...]
    parameters: int
    bytes_down: int
    bytes_up: int
    train_flops_per_token: float
    memory_bytes: int
    availability: float = 1.0
    """Probability that one of its clients takes part in a round."""
    device: Device | None = None
    """The virtual device of its clients, if the run gave them any."""
    memory_options: str = ""
    """Its memory options for frozen experts, in words."""
    expert_bytes: int = 0
    """Bytes of its frozen experts on a client."""
    full_expert_bytes: int = 0
    """The same without memory options."""


@dataclass(frozen=True, eq=False)
class Run:
    """Everything a report shows; files missing from the folder leave empty fields."""

    header: Record
    tiers: list[TierCost]
    """By `top_k`."""
    clients: list[Record]
    evaluations: list[Record]
    rounds: list[Record]
    end: Record | None
    num_replaced: int
    """Workers that died and were replaced."""
    faults: list[Record]
    """Faults injected into client rounds."""
    num_resumed: int
    """Number of times the run was resumed."""
    by_client: np.ndarray | None
    """int64 (clients, layers, experts): routed tokens."""
    num_examples: dict[int, int]
    labels: dict[int, dict[str, int]]
    """Number of examples by client and label."""
    settings: dict[str, str]
    environment: dict[str, str]
    names: dict[int, str]
    """Clients that are known by name."""
    rows: dict[int, RowCounts]
    """The account of a client's own rows, as it said."""
    unscored: list[Record]
    """Clients that were asked for scores on their own rows and gave none."""
    withheld: tuple[int, ...]
    """Clients that do not report their scores, when they were last asked."""
    away: dict[int, frozenset[int]]
    """By round: the clients that were not there, also those that have left for good."""
    judgements: list[Record]
    """The robust rule's work, by round."""
    private: list[Record]
    """By round: what is known of all clients together, where each one's numbers are hidden."""
    folder: Path = Path()

    def name_of(self, client: int) -> str:
        """Return a client's name; its number where it has none."""
        return self.names.get(client, str(client))

    @property
    def num_finished(self) -> int:
        """The number of finished rounds."""
        return max((r["round"] for r in self.rounds), default=0)

    @property
    def complete(self) -> bool:
        """True for a run that reached its end, or the last scores before it."""
        last = self.header["num_rounds"]
        tested = {e["tier"] for e in self.evaluations if (e["split"], e["round"]) == ("test", last)}
        return self.end is not None or tested == {tier.name for tier in self.tiers}

    @property
    def virtual_clock(self) -> dict[int, float]:
        """Virtual seconds from the run's start to each round's end; empty without devices."""
        return {r["round"]: r["virtual_clock"] for r in self.rounds if "virtual_clock" in r}

    @property
    def score_name(self) -> str:
        """The name of the score in words, such as `exact match`."""
        last = self.evaluations[-1:]
        return last[0].get("metric", "score").replace("_", " ") if last else "score"

    @property
    def scored(self) -> bool:
        """Return whether there is a score beside the loss."""
        return self.score_name != "loss"

    @property
    def is_share(self) -> bool:
        """Return whether the score is a share of right answers, which has an interval of shares."""
        return self.score_name not in ("likelihood", "token f1", "rouge l", "loss")

    @cached_property
    def measure(self) -> Literal["score", "loss"]:
        """The number that tells evaluations apart: the loss where all scores are the same."""
        return "score" if len({e["score"] for e in self.evaluations}) > 1 else "loss"

    @property
    def measure_name(self) -> str:
        """The same in words."""
        return self.score_name if self.measure == "score" else "loss per token"

    def label_of(self, client: int, tier: TierCost) -> str:
        """Return a client's name and budget for a row of a plot; long names lose their middle."""
        name, of = (shortened(text, MOST_LETTERS) for text in (self.name_of(client), tier.name))
        return f"{name} · {of} k={tier.top_k}"

    def tier_of(self, client: int) -> TierCost:
        """Return the tier of a client."""
        return next(tier for tier in self.tiers if client in tier.clients)

    def ok(self, *, client: int | None = None, tier: str | None = None) -> list[Record]:
        """Return the client rounds that arrived, by round, of one client or one tier."""
        lines = self.clients if client is None else self.of_client.get(client, [])
        return [c for c in lines if c["status"] == "ok" and tier in (None, c["tier"])]

    @cached_property
    def of_client(self) -> dict[int, list[Record]]:
        """The client rounds of each client, by round."""
        found: dict[int, list[Record]] = {}
        for line in self.clients:
            found.setdefault(line["client"], []).append(line)
        return found

    def curve(self, split: str, tier: str) -> list[Record]:
        """Return a tier's evaluations on one split, by round."""
        chosen = [e for e in self.evaluations if e["split"] == split and e["tier"] == tier]
        return sorted(chosen, key=lambda e: e["round"])

    def learning(self, tier: str) -> list[Record]:
        """Return a tier's validation evaluations, after that of the base model, on test data.

        Nobody measures the base model on validation data.
        """
        base = [e for e in self.curve("test", tier) if e["round"] == 0]
        return [*base, *self.curve("validation", tier)]

    def curves(self, split: str) -> list[list[Record]]:
        """Return the tiers' evaluations on one split, by round.

        Where clients score on their own rows, a tier may have none: nobody is in it, or all of its
        clients withhold their scores. Such a tier is left out.
        """
        found = [self.curve(split, tier.name) for tier in self.tiers]
        return [curve for curve in found if curve] if self.names else found

    def last_test(self, tier: str) -> Record | None:
        """Return a tier's last evaluation on test data, if it is not the base model's."""
        last = self.curve("test", tier)[-1:]
        return last[0] if last and last[0]["round"] > 0 else None


def read_run(folder: Path, records: Sequence[Record] | None = None) -> Run:
    """Return the run recorded in `folder`, finished or not.

    If a round was interrupted and repeated, its later records count.

    Args:
        records: the lines of its ledger, where they are read already.

    Raises:
        FedMoEError: no ledger, a damaged one, or one without a `run` line.
    """
    records = read_ledger(folder / "ledger.jsonl") if records is None else records
    header = next((r for r in reversed(records) if r["kind"] == "run"), None)
    joined = [j for r in records if r["kind"] == "roster" for j in r["joined"]]
    if header is None:
        raise FedMoEError(
            f"{folder / 'ledger.jsonl'} has no `run` line: the run ended before its first line was "
            "written, so there is nothing to report"
        )
    header = _as_ended(_with_clients(header, joined), records)
    manifest = _json(folder / "manifest.json").get("clients", [])
    return Run(
        header=header,
        tiers=_tiers(header),
        clients=_last(records, "client", ("round", "client")),
        evaluations=_last(records, "evaluation", ("round", "split", "tier")),
        rounds=_last(records, "round", ("round",)),
        end=_end(records),
        num_replaced=sum(r["kind"] == "worker" for r in records),
        faults=_last(records, "fault", ("round", "client", "fault")),
        num_resumed=sum(r["kind"] == "resumed" for r in records),
        by_client=_activations(folder / "activations.npz", header["num_clients"]),
        num_examples={c["client"]: c["num_examples"] for c in manifest},
        names={j["client"]: j["name"] for j in joined},
        rows={r["client"]: RowCounts(**r["rows"]) for r in _last(records, "rows", ("client",))},
        unscored=_last(records, "unscored", ("round", "split", "client")),
        withheld=_withheld(records),
        away=_away(_last(records, "roster", ("round",))),
        judgements=_last(records, "robust", ("round",)),
        private=_last(records, "private", ("round",)),
        labels={c["client"]: c["labels"] for c in manifest},
        folder=folder,
        settings=_settings(folder / "config.yaml"),
        environment=flat(_json(folder / "environment.json")),
    )


def flat(tree: Any, path: str = "") -> dict[str, str]:
    """Return a nested mapping as dotted keys and the text of their values.

    >>> flat({"budget": {"tiers": [1, 2]}})
    {'budget.tiers': '1, 2'}
    """
    if isinstance(tree, dict) and tree:
        parts = [flat(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()]
        return {key: text for part in parts for key, text in part.items()}
    if isinstance(tree, list) and all(isinstance(item, dict) for item in tree):
        return flat({str(i): item for i, item in enumerate(tree)}, path) if tree else {path: ""}
    return {path: ", ".join(map(str, tree)) if isinstance(tree, list) else str(tree)}


def _with_clients(header: Record, joined: Sequence[Record]) -> Record:
    """Return the `run` line with the clients that joined since."""
    if not joined:
        return header
    of = {name: {*values["clients"]} for name, values in header["tiers"].items()}
    for client in joined:
        of[client["tier"]].add(client["client"])
    tiers = {
        name: values | {"clients": sorted(of[name])} for name, values in header["tiers"].items()
    }
    number = sum(map(len, of.values()))
    each = min(header["clients_per_round"] or number, number)
    return header | {"tiers": tiers, "num_clients": number, "clients_per_round": each}


def _as_ended(header: Record, records: Sequence[Record]) -> Record:
    """Return the `run` line with the round that the run stopped after as its last, and why."""
    for stopped in (r for r in reversed(records) if r["kind"] == "stopped"):
        planned = {"planned_rounds": header["num_rounds"], "num_rounds": stopped["round"]}
        return header | planned | {"reason": stopped["reason"]}
    return header


def _tiers(header: Record) -> list[TierCost]:
    known = {field.name for field in fields(TierCost)}
    tiers = []
    for name, values in header["tiers"].items():
        found = {key: value for key, value in values.items() if key in known}
        found |= {"name": name, "clients": tuple(values["clients"])}
        if "device" in values:
            found["device"] = Device(**values["device"])
        tiers.append(TierCost(**found))
    return sorted(tiers, key=lambda tier: (tier.top_k, tier.name))


def _last(records: Sequence[Record], kind: str, key: tuple[str, ...]) -> list[Record]:
    """Return the last record of a kind for each key, sorted by key."""
    found = {tuple(r[name] for name in key): r for r in records if r["kind"] == kind}
    return [found[k] for k in sorted(found)]


def _withheld(records: Sequence[Record]) -> tuple[int, ...]:
    """Return whoever withheld scores of the split that was asked for last."""
    found = [r for r in records if r["kind"] == "withheld"]
    asked = [(r["round"], r["split"]) for r in found]
    lines = [r for r, split in zip(found, asked, strict=True) if split == asked[-1]]
    return tuple(sorted({client for line in lines for client in line["clients"]}))


def _away(rosters: Sequence[Record]) -> dict[int, frozenset[int]]:
    """Return by round who was absent or had left."""
    gone: set[int] = set()
    away = {}
    for line in rosters:
        gone = (gone | {*line["left"]}) - {joined["client"] for joined in line["joined"]}
        away[line["round"]] = frozenset({*line["absent"]} | gone)
    return away


def _end(records: Sequence[Record]) -> Record | None:
    """Return the `end` line, unless the run was resumed after it."""
    steps = [r for r in records if r["kind"] != "evaluation"]
    return steps[-1] if steps[-1]["kind"] == "end" else None


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Say which file of a run cannot be read, and what writes it again."""
    try:
        yield
    except DAMAGE as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise FedMoEError(
            f"{path} is damaged: {why:.200}. The run's command with --resume auto writes it again"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    with _whole(path):
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _settings(path: Path) -> dict[str, str]:
    """Return the configuration as written: BaseLoader does not turn `no` into False."""
    if not path.exists():
        return {}
    with _whole(path):
        return flat(yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader) or {})


def _activations(path: Path, num_clients: int) -> np.ndarray | None:
    """Return the tokens by client; clients that joined since it was written have none."""
    if not path.exists():
        return None
    with _whole(path), np.load(BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
        counts = arrays["by_client"]
    more = max(0, num_clients - len(counts))
    return np.pad(counts, ((0, more), (0, 0), (0, 0))) if counts.sum() else None
