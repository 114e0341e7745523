"""Federated LoRA with PEFT as people write it: under Flower's simulation, or as a plain loop.

`whole_run` starts each as a process and gives it a job: a file of clients, rows and rounds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM

State = dict[str, Tensor]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


class Trainer:
    """One resident model that plays every client: grouped_mm experts, AdamW at a constant rate."""

    def __init__(self, job: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.job = job
        base = AutoModelForCausalLM.from_pretrained(
            job["model"], dtype=torch.float32, experts_implementation="grouped_mm"
        )
        config = LoraConfig(
            r=job["rank"],
            lora_alpha=job["alpha"],
            target_modules=ATTENTION,
            target_parameters=EXPERTS,
        )
        self.model = get_peft_model(base, config)

    def state(self) -> State:
        """Return a copy of the adapter."""
        return {name: t.clone() for name, t in get_peft_model_state_dict(self.model).items()}

    def train(self, state: State, client: str, number: int) -> tuple[State, int]:
        """Return a client's adapter after its steps with its own k, and its examples."""
        k, rows = self.job["clients"][client]
        set_peft_model_state_dict(self.model, state)
        for module in self.model.modules():
            if hasattr(module, "top_k"):
                module.top_k = k
        learnt = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learnt, lr=self.job["rate"], weight_decay=0.0)
        batches = self._batches(rows, np.random.default_rng([number, int(client)]))
        for _ in range(self.job["steps"]):
            self.model(**next(batches)).loss.backward()
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return self.state(), len(rows)

    def _batches(self, rows: list[Any], rng: np.random.Generator) -> Iterator[dict[str, Tensor]]:
        """Yield padded batches of a client's rows, each a list of ids and one of labels."""
        waiting: list[int] = []
        while True:
            while len(waiting) < self.job["batch_size"]:
                waiting += rng.permutation(len(rows)).tolist()
            chosen, waiting = (waiting[: self.job["batch_size"]], waiting[self.job["batch_size"] :])
            ids = [torch.tensor(rows[i][0]) for i in chosen]
            labels = [torch.tensor(rows[i][1]) for i in chosen]
            pad = torch.nn.utils.rnn.pad_sequence
            yield {
                "input_ids": pad(ids, True, self.job["pad"]),
                "attention_mask": pad([torch.ones_like(x) for x in ids], True),
                "labels": pad(labels, True, -100),
            }


def plain(job: dict[str, Any]) -> dict[str, float]:
    """Run all rounds in this process; bytes are what would be sent."""
    trainer = Trainer(job)
    state, started = trainer.state(), time.monotonic()
    size = sum(t.nbytes for t in state.values())
    for number, clients in enumerate(job["rounds"]):
        answers = [trainer.train(state, client, number) for client in clients]
        total = sum(examples for _, examples in answers)
        shares = [(answer, examples / total) for answer, examples in answers]
        state = {n: torch.stack([s[n] * share for s, share in shares]).sum(0) for n in state}
    return {"seconds": time.monotonic() - started, "down": size, "up": size}


def flower(job: dict[str, Any]) -> dict[str, float]:
    """Run all rounds in Flower's simulation, a node for each client of a round."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client_app, server_app = ClientApp(), ServerApp()
    found = {"seconds": 0.0, "down": 0.0, "up": 0.0}

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(message.content.config_records["config"]["server-round"]) - 1  # pyright: ignore
        client = job["rounds"][number][int(context.node_config["partition-id"])]
        given = message.content.array_records["arrays"].to_torch_state_dict()
        state, examples = resident(json.dumps(job)).train(given, client, number)
        metrics = MetricRecord({"num-examples": examples})
        reply = RecordDict({"arrays": ArrayRecord(state), "metrics": metrics})  # pyright: ignore
        return Message(reply, reply_to=message)

    class Counted(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            messages = [*super().configure_train(server_round, arrays, config, grid)]
            found["down"] += sum(size_of(message) for message in messages)
            return messages

        def aggregate_train(self, server_round, replies):
            replies = [*replies]
            assert not any(r.has_error() for r in replies), [r.error for r in replies]
            found["up"] += sum(size_of(reply) for reply in replies)
            return super().aggregate_train(server_round, replies)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = len(job["rounds"][0])
        strategy = Counted(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
        arrays, started = ArrayRecord(Trainer(job).state()), time.monotonic()  # pyright: ignore
        strategy.start(grid, arrays, num_rounds=len(job["rounds"]))
        found["seconds"] = time.monotonic() - started

    resources = {"client_resources": {"num_cpus": 1}}
    run_simulation(server_app, client_app, len(job["rounds"][0]), backend_config=resources)  # pyright: ignore
    number = sum(map(len, job["rounds"]))
    return found | {"down": found["down"] / number, "up": found["up"] / number}


def size_of(message: Any) -> int:
    """Return the bytes of a message's arrays, as Flower sends them."""
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())


@lru_cache(1)
def resident(job: str) -> Trainer:
    """Return the model of this process, which stays between its tasks."""
    return Trainer(json.loads(job))


def main(kind: str, job: str) -> None:
    """Run a job, and print how long its rounds took and the bytes of a client-round."""
    made = {"flower": flower, "plain": plain}[kind]
    print(json.dumps(made(json.loads(Path(job).read_text()))))
