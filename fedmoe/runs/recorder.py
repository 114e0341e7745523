"""A run's folder while it runs: resolved config, ledger, adapters, scores, activation counts."""

from __future__ import annotations

import datetime
import io
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_safetensors

from fedmoe.adapter import Adapter
from fedmoe.budget.cost import Cost, cost
from fedmoe.config.faults import parse_faults
from fedmoe.config.load import to_yaml
from fedmoe.devices.clock import client_time, probe_tokens, profile_tokens, virtual_bytes_up
from fedmoe.evaluation.evaluate import Evaluation
from fedmoe.messages.codec import Failure, Task, Update, task_num_bytes
from fedmoe.report.ledger import Ledger, read_ledger
from fedmoe.rounds import ServerState
from fedmoe.runs.checkpoint import Checkpoint
from fedmoe.runs.identity import identity, settings_digest, written_identity
from fedmoe.runs.prepared import Prepared
from fedmoe.runs.workers import Injected, Replaced, Schedule
from fedmoe.system.digests import code_digest
from fedmoe.system.files import write_bytes, write_json, write_text

VERSIONS = ("torch", "transformers", "peft", "flwr", "numpy", "home-assistant-intents")


class Recorder:
    """An observer of the round loop that writes everything down as it happens."""

    def __init__(
        self,
        folder: Path,
        prepared: Prepared,
        clock: Callable[[], float] | None = None,
        resumed: Checkpoint | None = None,
    ) -> None:
        """Open the folder's ledger.

        Args:
            folder: of the run; it exists.
            prepared: the run.
            clock: virtual seconds since the run began, where rounds are not as long as their
                slowest client.
            resumed: where the run goes on; what its ledger says of later rounds is cut off.
        """
        self.folder, self.prepared, self.clock = folder, prepared, clock
        self.costs = tier_costs(prepared)
        layout, e = prepared.model.layout, prepared.experiment
        shape = (layout.num_layers, layout.num_experts)
        self.by_round = np.zeros((e.rounds, *shape), dtype=np.int64)
        self.by_client = np.zeros((len(prepared.members), *shape), dtype=np.int64)
        self.best: tuple[float, float] | None = None
        self.scores: list[dict[str, Any]] = []
        self.virtual_clock = 0.0
        self.number = 1
        self.round: dict[str, int | float] = {"tokens": 0, "clients": 0, "failed": 0}
        self.round_started = time.monotonic()
        if resumed:
            self._go_on(resumed)
            return
        self.ledger = Ledger(folder / "ledger.jsonl")
        self._open()

    def _open(self) -> None:
        """Say what the run is of, from here on."""
        write_text(self.folder / "config.yaml", to_yaml(self.prepared.experiment))
        write_json(self.folder / "environment.json", environment(self.prepared))
        write_json(self.folder / "manifest.json", self.prepared.manifest)
        self.ledger.append(self._opening())

    def _go_on(self, resumed: Checkpoint) -> None:
        """Take up the ledger and the sums as they were when the checkpoint was written."""
        path, about = self.folder / "ledger.jsonl", resumed.about
        os.truncate(path, about["ledger_bytes"])
        records = read_ledger(path)
        self.ledger = Ledger(path)
        rounds = min(len(self.by_round), len(resumed.by_round))
        self.by_round[:rounds] = resumed.by_round[:rounds]
        self.by_client[:] = resumed.by_client
        self.number = resumed.state.round + 1
        self.virtual_clock, self.best = about["virtual_clock"], about["best"] and (*about["best"],)
        evaluated = [record for record in records if record["kind"] == "evaluation"]
        self.scores = [{k: v for k, v in r.items() if k != "kind"} for r in evaluated]
        self.ledger.append({"kind": "resumed", "round": self.number})
        # It goes on as another run (`--resume anyway`), or what it says of itself is another's.
        mine = identity(self.prepared)
        if about["identity"] != mine or written_identity(self.folder) != mine:
            self._open()

    def checkpoint(self, state: ServerState, versions: dict[int, ServerState]) -> Checkpoint:
        """All that a later process needs to go on from here."""
        about = {
            "ledger_bytes": self.ledger.sync(),
            "virtual_clock": self.virtual_clock,
            "best": self.best,
        }
        sums = torch.from_numpy(self.by_round.copy()), torch.from_numpy(self.by_client.copy())
        return Checkpoint(state, versions, *sums, about)

    def planned(self, tasks: Sequence[Task]) -> None:
        self.round = {"tokens": 0, "clients": len(tasks), "failed": 0}
        if self.prepared.experiment.devices:
            self.round["virtual_seconds"] = 0.0
        self.round_started = time.monotonic()

    def answered(self, task: Task, answer: Update | Failure) -> None:
        line = {"kind": "client", "round": self.number, "client": task.client, "tier": task.tier}
        line["top_k"] = task.top_k
        if task.round != self.number:
            line["staleness"] = self.number - task.round
        if isinstance(answer, Failure):
            self.round["failed"] += 1
            self.ledger.append(
                line | {"status": "failed", "reason": answer.reason, "code": answer.code}
            )
            return
        if answer.top_k < task.top_k:
            line |= {"top_k": answer.top_k, "requested_top_k": task.top_k}
        price = self._price(task.tier, answer.top_k)
        self.round["tokens"] += answer.tokens
        counts = answer.counts.numpy()
        self.by_round[self.number - 1] += counts
        self.by_client[task.client] += counts
        names = (
            "examples",
            "tokens",
            "steps",
            "loss_before",
            "loss_after",
            "seconds",
            "peak_bytes",
        )
        line |= {name: getattr(answer, name) for name in names}
        line |= {
            "bytes_down": task_num_bytes(task),
            "bytes_up": answer.num_bytes,
            "status": "ok",
            "flops": price.train_flops_per_token * answer.tokens,
        }
        self.ledger.append(line | self._virtual(answer, line, price))

    def _price(self, tier: str, top_k: int) -> Cost:
        """What a client pays that trained with `top_k` experts."""
        usual = self.costs[tier]
        return usual if usual.top_k == top_k else tier_cost(self.prepared, tier, top_k)

    def _virtual(self, update: Update, line: dict[str, Any], price: Cost) -> dict[str, float]:
        """What a client's round takes on its virtual device, and the figures that tell."""
        e = self.prepared.experiment
        if not e.devices:
            return {}
        lengths = [len(row.ids) for row in self.prepared.rows[update.client]]
        probed = probe_tokens(lengths, self.prepared.training.probe_examples)
        if subset := self.prepared.subset(update.tier):
            probed += profile_tokens(lengths, subset.examples)
        figures: dict[str, float] = {
            "probe_flops": price.forward_flops_per_token * probed,
            "virtual_bytes_up": virtual_bytes_up(update),
        }
        slowdown = parse_faults(e.faults).slowdown(e.seed, update.round, update.client)
        if slowdown > 1:
            figures["slowdown"] = slowdown
        seconds = client_time(e.devices[update.tier], line | figures).seconds
        # The server waits for the slowest whose update counts.
        self.round["virtual_seconds"] = max(self.round["virtual_seconds"], seconds)
        return figures | {"virtual_seconds": seconds}

    def finished(self, state: ServerState) -> None:
        seconds = time.monotonic() - self.round_started
        self.number = state.round + 1
        if self.clock is not None:
            self.round["virtual_seconds"] = self.clock() - self.virtual_clock
        if "virtual_seconds" in self.round:
            self.virtual_clock += self.round["virtual_seconds"]
            self.round["virtual_clock"] = self.virtual_clock
        self.ledger.append(
            {"kind": "round", "round": state.round, "seconds": seconds, **self.round}
        )
        self.save_adapter("adapter-last", state)
        file = io.BytesIO()
        np.savez_compressed(file, by_round=self.by_round[: state.round], by_client=self.by_client)
        write_bytes(self.folder / "activations.npz", file.getvalue())

    def scheduled(self, schedule: Schedule) -> None:
        """Keep how the round's training filled the workers, for the round's line."""
        self.round |= {
            "workers": schedule.workers,
            "busy_seconds": schedule.busy_seconds,
            "makespan_seconds": schedule.makespan_seconds,
            "ideal_seconds": schedule.ideal_seconds,
        }

    def replaced(self, event: Replaced) -> None:
        """Write down that a worker died, and at which job."""
        self.ledger.append({"kind": "worker", **asdict(event)})

    def injected(self, event: Injected) -> None:
        """Write down what was done to a client on purpose."""
        self.ledger.append({"kind": "fault", **asdict(event)})

    def evaluated(self, state: ServerState, results: Sequence[Evaluation]) -> None:
        """Write scores down, and keep the adapter of the best mean validation score."""
        for result in results:
            self.scores.append(asdict(result))
            self.ledger.append({"kind": "evaluation", **self.scores[-1]})
        write_json(self.folder / "scores.json", self.scores)
        if state.round and results[0].split == "validation":
            mean = sum(r.score for r in results), -sum(r.loss for r in results)
            if self.best is None or mean > self.best:
                self.best = mean
                self.save_adapter("adapter-best", state)

    def save_adapter(self, name: str, state: ServerState) -> None:
        """The adapter and the tiers' rescalers, as safetensors, atomically."""
        blob = adapter_bytes(state.adapter, state)
        write_bytes(self.folder / f"{name}.safetensors", blob)

    def ended(
        self, state: ServerState, seconds: float, phases: dict[str, float], share: float
    ) -> None:
        """The last line of a run that was not interrupted."""
        self.ledger.append(
            {
                "kind": "end",
                "seconds": seconds,
                "phases": phases,
                "training_share": share,
                "adapter_sha256": state.adapter.digest(),
            }
        )

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    def _opening(self) -> dict:
        e, prepared = self.prepared.experiment, self.prepared
        tiers = {
            tier: {
                "top_k": c.top_k,
                "clients": [m.client for m in prepared.members if m.tier == tier],
                "parameters": c.parameters,
                "bytes_down": c.bytes_down,
                "bytes_up": c.bytes_up,
                "train_flops_per_token": c.train_flops_per_token,
                "memory_bytes": c.memory_bytes,
                "availability": min(
                    (m.availability for m in prepared.members if m.tier == tier), default=0.0
                ),
                **({"device": asdict(e.devices[tier])} if e.devices else {}),
                "memory_options": self.prepared.tier(tier).memory_options,
                "expert_bytes": c.expert_bytes,
                "full_expert_bytes": c.full_expert_bytes,
            }
            for tier, c in self.costs.items()
        }
        return {
            "kind": "run",
            "name": e.name,
            "seed": e.seed,
            "num_rounds": e.rounds,
            "num_clients": len(prepared.members),
            "clients_per_round": prepared.clients_per_round,
            "model": e.model.path,
            "strategy": e.aggregation.name,
            **(
                {"updates_per_step": e.aggregation.updates_per_step(prepared.clients_per_round)}
                if e.aggregation.asynchronous
                else {}
            ),
            "rescaling": e.rescaling.name,
            "upload": e.upload.name,
            "full_top_k": prepared.model.full_top_k,
            "tiers": tiers,
        }


def tier_costs(prepared: Prepared) -> dict[str, Cost]:
    """What each tier's clients pay, for batches of the run's mean length."""
    return {tier: tier_cost(prepared, tier, top_k) for tier, top_k in prepared.tiers.items()}


def tier_cost(prepared: Prepared, tier: str, top_k: int) -> Cost:
    """What one of a tier's clients pays that activates `top_k` experts."""
    lengths = [len(row.ids) for rows in prepared.rows for row in rows]
    batch_tokens = prepared.training.batch_size * round(sum(lengths) / len(lengths))
    layouts, upload = prepared.layouts(tier, 1), prepared.experiment.upload
    asked, subset = prepared.tier(tier), prepared.subset(tier)
    args = prepared.model, layouts, top_k, batch_tokens, upload
    return cost(*args, frozen=asked.frozen, offload=asked.offload, subset=subset)


def adapter_bytes(adapter: Adapter, state: ServerState) -> bytes:
    """Every factor by its name, the rescalers as `rescaler.<tier>`, the round in the metadata."""
    tensors = {entry.name: view.contiguous() for entry, view in adapter.layout.views(adapter.flat)}
    tensors |= {f"rescaler.{tier}": r for tier, r in state.rescalers.items()}
    return to_safetensors(tensors, {"round": str(state.round), "layout": adapter.layout.digest})


def environment(prepared: Prepared) -> dict[str, Any]:
    """Versions and machine that the figures of a run depend on, and what it is of."""
    return {
        "identity": identity(prepared),
        "code": code_digest(),
        "requested": settings_digest(prepared.requested or prepared.experiment),
        "device": str(prepared.model.device),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
        **{name: version(name) for name in VERSIONS},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
