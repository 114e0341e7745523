"""The record of a run in its folder: config, ledger, adapters, scores, activation counts."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedmoe.aggregation.mean import TierShares
from fedmoe.config.faults import parse_faults
from fedmoe.config.load import to_yaml
from fedmoe.data.manifest import accounts_manifest
from fedmoe.devices.clock import client_time, probe_tokens, profile_tokens, virtual_bytes_up
from fedmoe.messages.codec import task_num_bytes
from fedmoe.messages.records import Failure
from fedmoe.messages.rows import RowCounts
from fedmoe.report.example_scores import write_example_scores
from fedmoe.report.ledger import Ledger, read_ledger, shorten
from fedmoe.rounds import Observer
from fedmoe.runs.asynchronous import goes_live
from fedmoe.runs.checkpoint import Checkpoint
from fedmoe.runs.costs import tier_cost, tier_costs
from fedmoe.runs.identity import environment, identity
from fedmoe.runs.opening import opening
from fedmoe.runs.round_files import tensor_parts
from fedmoe.runs.seal import Seal, write_seal
from fedmoe.runs.workers import Watch
from fedmoe.system.background import Background
from fedmoe.system.files import json_file, write_bytes, write_json, write_text

if TYPE_CHECKING:
    from fedmoe.adapter import Adapter
    from fedmoe.aggregation.robust.judgement import Judgement
    from fedmoe.budget.cost import Cost
    from fedmoe.evaluation.evaluate import Evaluation
    from fedmoe.messages.records import Task, Update
    from fedmoe.rounds import ServerState
    from fedmoe.runs.roster import Attendance
    from fedmoe.runs.server_side import ServerSide
    from fedmoe.runs.workers import Injected, Schedule
    from fedmoe.system.workforce import Replaced


class Recorder(Observer, Watch):
    """Writes down everything that happens in a run."""

    def __init__(self, folder: Path, server: ServerSide, resumed: Checkpoint | None = None) -> None:
        """Open the folder's ledger.

        Args:
            resumed: the checkpoint that the run continues from; later lines of its ledger are cut
                off.
        """
        self.folder, self.server = folder, server
        self.large = Background()
        """Writes the adapters and checkpoints of a round, while the next one trains."""
        self.clock: Callable[[], float] | None = None
        """Returns the virtual seconds since the run began, if rounds are not as long as their
        slowest client."""
        self.costs = tier_costs(server)
        layout, e = server.setup.model.layout, server.setup.experiment
        shape = (layout.num_layers, layout.num_experts)
        self.by_round = np.zeros((e.rounds, *shape), dtype=np.int64)
        self.by_client = np.zeros((len(server.members), *shape), dtype=np.int64)
        self.best: tuple[float, float] | None = None
        self.best_round = 0
        self.shares = TierShares()
        self.scores, self.accounts_changed = list[dict[str, Any]](), False
        self.texts = {"run-id": f"{server.run_id}\n"}
        """Small files of the folder as they must be, by name."""
        self.rows: dict[int, RowCounts] = {}
        """Clients' accounts of their own rows, as last written down."""
        self.virtual_clock = 0.0
        self.trained = False
        """Whether an update has arrived, ever."""
        self.number = 1
        self.round: dict[str, int | float] = {"tokens": 0, "clients": 0, "failed": 0}
        self.round_started = time.monotonic()
        self.live = goes_live(e)
        """Whether tasks are planned when they are done: a round then lasts from one to the next."""
        if resumed:
            self._continue(resumed)
            return
        self.ledger = Ledger(folder / "ledger.jsonl")
        self._open()

    def _open(self) -> None:
        """Describe the run, from here on."""
        about = environment(self.server, self.folder)
        self.texts["config.yaml"] = to_yaml(self.server.setup.experiment)
        self.texts["environment.json"] = json_file(about)
        for name, text in self.texts.items():
            write_text(self.folder / name, text)
        write_json(self.folder / "manifest.json", self.server.facts.as_manifest())
        self.ledger.append(opening(self.server, self.costs))

    def _continue(self, resumed: Checkpoint) -> None:
        """Restore the ledger and the sums as they were when the checkpoint was written."""
        path, about = self.folder / "ledger.jsonl", resumed.about
        # What lost rounds have spent stays spent: nobody knows who has seen their states.
        lost = [r for r in read_ledger(path) if r["kind"] == "private"]
        lost = [r | {"again": True} for r in lost if r["round"] > resumed.state.round]
        shorten(path, about["seal"]["ledger_bytes"], lost)
        records = read_ledger(path)
        self.ledger = Ledger(path)
        rounds = min(len(self.by_round), len(resumed.by_round))
        self.by_round[:rounds] = resumed.by_round[:rounds]
        self.by_client = resumed.by_client.numpy().copy()
        self.number = resumed.state.round + 1
        done = [record.get("status") for record in records if record["kind"] == "client"]
        self.trained = "ok" in done
        self.virtual_clock, self.best = about["virtual_clock"], about["best"] and (*about["best"],)
        self.best_round = about["best_round"]
        evaluated = [record for record in records if record["kind"] == "evaluation"]
        self.scores = [{k: v for k, v in r.items() if k != "kind"} for r in evaluated]
        self.rows = {r["client"]: RowCounts(**r["rows"]) for r in records if r["kind"] == "rows"}
        self.ledger.append({"kind": "resumed", "round": self.number})
        self.texts, self.accounts_changed = about["seal"]["texts"], bool(self.rows)
        if about["identity"] != identity(self.server):  # it continues as another one, `anyway`
            self._open()

    def checkpoint(self, state: ServerState, versions: dict[int, ServerState]) -> Checkpoint:
        """Return everything that a later process needs to continue from here."""
        about = {
            "seal": asdict(self._seal()),
            "virtual_clock": self.virtual_clock,
            "best": self.best,
            "best_round": self.best_round,
        }
        sums = torch.from_numpy(self.by_round.copy()), torch.from_numpy(self.by_client.copy())
        return Checkpoint(state, versions, *sums, about)

    def summed(self, line: Mapping[str, Any], counts: np.ndarray | None = None) -> None:
        """Note what is known of a round that hides its clients' numbers; of `counts` their sum."""
        self.ledger.append({"kind": "private", "round": self.number, **line})
        if counts is not None:
            self.by_round[self.number - 1] += counts

    def planned(self, tasks: Sequence[Task]) -> None:
        self.round = {"tokens": 0, "clients": len(tasks), "failed": 0}
        if self.server.setup.experiment.devices:
            self.round["virtual_seconds"] = 0.0
        if not self.live:
            self.round_started = time.monotonic()

    def answered(self, task: Task, answer: Update | Failure) -> None:
        line = {"kind": "client", "round": self.number, "client": task.client, "tier": task.tier}
        line |= {"name": task.name} if task.name else {}
        line["top_k"] = task.top_k
        if task.round != self.number:
            line["staleness"] = self.number - task.round
        if isinstance(answer, Failure):
            self.round["failed"] += 1
            failed = {"status": "failed", "reason": answer.reason, "code": answer.code}
            self.ledger.append(line | failed)
            return
        if answer.top_k < task.top_k:
            line |= {"top_k": answer.top_k, "requested_top_k": task.top_k}
        price = self._price(task.tier, answer.top_k)
        # A message's true size tells which experts it leaves out.
        up = answer.num_bytes or price.bytes_up
        sent = {"bytes_down": task_num_bytes(task), "bytes_up": up, "status": "ok"}
        self.trained = True
        if answer.withheld:
            self.ledger.append(line | sent)
            return
        self.round["tokens"] += answer.tokens
        self.shares.add(self.server.setup.experiment.aggregation, answer)
        counts = answer.counts.numpy()
        self.by_round[self.number - 1] += counts
        self._make_room(task.client)
        self.by_client[task.client] += counts
        reported = answer.as_json()
        reported.pop("rows", None)
        if answer.rows:
            self.accounted({task.client: (task.name, answer.rows)})
        line |= reported | sent | {"flops": price.train_flops(answer.tokens, answer.targets)}
        self.ledger.append(line | self._virtual(answer, line, price))

    def _make_room(self, client: int) -> None:
        """Make room for the counts of clients that have joined, for all of them at once."""
        more = max(client + 1, len(self.server.members)) - len(self.by_client)
        if more > 0:
            self.by_client = np.pad(self.by_client, ((0, more), (0, 0), (0, 0)))

    def _price(self, tier: str, top_k: int) -> Cost:
        """Return the cost of a client that trained with `top_k` experts."""
        usual = self.costs[tier]
        return usual if usual.top_k == top_k else tier_cost(self.server, tier, top_k)

    def _virtual(self, update: Update, line: dict[str, Any], price: Cost) -> dict[str, float]:
        """Return the time of a client's round on its virtual device, and the figures behind it."""
        e = self.server.setup.experiment
        if not e.devices:
            return {}
        lengths = self.server.facts.lengths_of(update.client)
        probed = probe_tokens(lengths, self.server.setup.training.probe_examples)
        if subset := self.server.setup.subset(update.tier):
            probed += profile_tokens(lengths, subset.examples)
        figures: dict[str, float] = {
            "probe_flops": price.forward_flops_per_token * probed,
            "virtual_bytes_up": virtual_bytes_up(update),
        }
        slowdown = parse_faults(e.faults).slowdown(e.seed, update.round, update.client)
        if slowdown > 1:
            figures["slowdown"] = slowdown
        seconds = client_time(e.devices[update.tier], line | figures).seconds
        # The server waits for the slowest client whose update counts.
        self.round["virtual_seconds"] = max(self.round["virtual_seconds"], seconds)
        return figures | {"virtual_seconds": seconds}

    def _write_accounts(self) -> None:
        """Write what clients said of their own rows, if it has changed."""
        if self.accounts_changed:
            names = {m.client: m.name for m in self.server.members}
            write_json(self.folder / "manifest.json", accounts_manifest(self.rows, names))
        self.accounts_changed = False

    def judged(self, number: int, judgement: Judgement) -> None:
        self.ledger.append({"kind": "robust", "round": number, **judgement.as_json()})

    def finished(self, state: ServerState) -> None:
        self.large.wait()  # at most one round's large files are behind, two rounds' never
        self._write_accounts()
        now = time.monotonic()
        seconds, self.round_started = now - self.round_started, now
        self.number = state.round + 1
        if self.clock is not None:
            self.round["virtual_seconds"] = self.clock() - self.virtual_clock
        if "virtual_seconds" in self.round:
            self.virtual_clock += self.round["virtual_seconds"]
            self.round["virtual_clock"] = self.virtual_clock
        line = {"kind": "round", "round": state.round, "seconds": seconds}
        shares = {"tier_shares": taken} if (taken := self.shares.taken()) else {}
        self.ledger.append(line | self.round | shares)
        self.save_adapter("adapter-last", state)
        file = io.BytesIO()
        np.savez_compressed(file, by_round=self.by_round[: state.round], by_client=self.by_client)
        write_bytes(self.folder / "activations.npz", file.getvalue())

    def scheduled(self, schedule: Schedule) -> None:
        """Keep how the round's training filled the workers, for the round's line."""
        names = ("workers", "busy_seconds", "makespan_seconds", "ideal_seconds")
        self.round |= {name: getattr(schedule, name) for name in names}

    def replaced(self, event: Replaced) -> None:
        self.ledger.append({"kind": "worker", **asdict(event)})

    def injected(self, event: Injected) -> None:
        self.ledger.append({"kind": "fault", **asdict(event)})

    def met(self, attendance: Attendance) -> None:
        """Note who is there in a round, where clients come and go."""
        self.ledger.append(attendance.as_json())

    def accounted(self, rows: Mapping[int, tuple[str, RowCounts]]) -> None:
        """Note clients' accounts of their own rows, by number, where they are new or changed."""
        for client, (name, counts) in rows.items():
            if self.rows.get(client) != counts:
                self.rows[client], self.accounts_changed = counts, True
                line = {"kind": "rows", "round": self.number, "client": client, "name": name}
                self.ledger.append(line | {"rows": counts.as_json()})

    def unscored(self, failure: Failure, split: str) -> None:
        """Note a client that was asked for scores and gave none."""
        line = {"kind": "unscored", "round": failure.round - 1, "split": split}
        reason = {"reason": failure.reason, "code": failure.code}
        self.ledger.append(line | {"client": failure.client} | reason)

    def withheld(self, tasks: Sequence[Task], split: str) -> None:
        """Note clients that do not report their scores."""
        line = {"kind": "withheld", "round": tasks[0].round - 1, "split": split}
        self.ledger.append(line | {"clients": [task.client for task in tasks]})

    def evaluated(self, state: ServerState, results: Sequence[Evaluation]) -> None:
        """Write scores down, and note which is the best: by score, or loss without one (NaN)."""
        self._write_accounts()
        for result in results:
            self.scores.append(result.as_json())
            self.ledger.append({"kind": "evaluation", **self.scores[-1]})
        write_json(self.folder / "scores.json", self.scores)
        write_example_scores(self.folder, results)
        best = self.server.setup.experiment.evaluation.best
        if state.round and (chosen := [r for r in results if r.split == best]):
            mean = sum(r.score for r in chosen if r.score >= 0), -sum(r.loss for r in chosen)
            if self.best is None or mean > self.best:
                self.best, self.best_round = mean, state.round

    def keep_best(self, state: ServerState) -> None:
        """Have the adapter written as the best, if it is: after the checkpoint of its round.

        So a round that is lost, and may end another way when it is done again, leaves no trace.
        """
        if self.best_round == state.round > 0:
            self.save_adapter("adapter-best", state)

    def why_stop(self) -> str:
        """Return why the run ends early, by all scores so far; empty if it does not."""
        e = self.server.setup.experiment
        return e.early_stopping.reason(self.scores, e.evaluation.best) if e.early_stopping else ""

    def stopped(self, state: ServerState, reason: str) -> None:
        """Note that the run ends before its last round."""
        self.ledger.append({"kind": "stopped", "round": state.round, "reason": reason})

    def save_adapter(self, name: str, state: ServerState) -> None:
        """Have the adapter and the tiers' rescalers written as safetensors, atomically."""
        path = self.folder / f"{name}.safetensors"
        self.large.add(lambda: write_bytes(path, *adapter_parts(state.adapter, state)))

    def ended(
        self, state: ServerState, seconds: float, phases: dict[str, float], share: float
    ) -> None:
        """Write the last line of a run that was not interrupted."""
        self.large.wait()
        line = {"kind": "end", "seconds": seconds, "phases": phases, "training_share": share}
        self.ledger.append(line | {"adapter_sha256": state.adapter.digest()})
        write_seal(self.folder, self._seal())

    def _seal(self) -> Seal:
        return Seal(self.texts, self.ledger.sync(), self.ledger.sha256)

    def close(self) -> None:
        """Finish what is being written, and close the ledger."""
        self.large.close()
        self.ledger.close()


def adapter_parts(adapter: Adapter, state: ServerState) -> tuple[bytes | memoryview, ...]:
    """Return every factor by name, rescalers as `rescaler.<tier>`, the round in the metadata."""
    tensors = {entry.name: view.contiguous() for entry, view in adapter.layout.views(adapter.flat)}
    tensors |= {f"rescaler.{tier}": r for tier, r in state.rescalers.items()}
    return tensor_parts(tensors, {"round": str(state.round), "layout": adapter.layout.digest})
