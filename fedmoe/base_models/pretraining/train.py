"""`fedmoe pretrain`: a small sparse MoE language model from scratch, on CPU, resumable.

Data-parallel workers of one thread each (two threads in one process are slower), AdamW with
warm-up, a constant phase and a linear decay, so that the length of the run can be chosen late.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
from transformers import OlmoeConfig, OlmoeForCausalLM
from transformers.integrations.moe import ExpertsInterface

from fedmoe.base_models.pretraining import corpus
from fedmoe.base_models.pretraining import work as works
from fedmoe.base_models.pretraining.card import write_card
from fedmoe.base_models.pretraining.recipe import (
    HELD_OUT,
    MOST_BLOCK,
    PATHS,
    ModelShape,
    Pretrain,
    check_out,
    check_tokens,
    claim,
)
from fedmoe.errors import FedMoEError
from fedmoe.models.experts import experts_forward
from fedmoe.models.families import moe_layers, set_top_k
from fedmoe.models.gating import Gates
from fedmoe.seeds import derive, generator
from fedmoe.system.files import expanded
from fedmoe.system.folders import whole_folder, writing
from fedmoe.training.router_losses import router_training

CHECKPOINT_SECONDS = 300
LOG_STEPS = 50
VALIDATION_STEPS = 250
HEAR_SECONDS = 0.5
"""Time between two looks at the workers' reports."""
Progress = Callable[[dict[str, Any]], None]


def pretrain(recipe: Pretrain, progress: Progress = lambda row: None) -> None:
    """Build the corpus if it is missing, then train to the end from the latest checkpoint.

    `out` appears, or is replaced, at the end. Whatever can be is checked before training.

    Args:
        progress: receives each row of the log: step, tokens, seconds, losses.

    Raises:
        ModelError: `out` cannot be written, or holds anything but a model of this recipe.
        FedMoEError: the work folder serves another recipe, or is damaged.
        DataError: sources are missing.
        OSError: a disk is full, or forbids; it names what could not be written.
    """
    work = expanded(recipe.work)
    with whole_folder(expanded(recipe.out), partial(check_out, recipe)) as folder:
        claim(recipe)
        with writing(work):
            corpus.build(recipe)
        check_tokens(recipe)
        corpus.tokenizer_of(work)
        works.sources(work)
        works.forget_after(works.steps_done(work), work)
        _spawn(recipe, folder, progress)


def _spawn(recipe: Pretrain, folder: Path, progress: Progress) -> None:
    """Train in separate processes; a user's error is raised here as it was there."""
    port = str(get_free_port())
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1")
    told, failed = get_context("spawn").SimpleQueue(), []

    def hear() -> None:
        while not told.empty():
            said = told.get()
            if isinstance(said, Exception):
                failed.append(said)
            else:
                progress(said)

    try:
        workers = torch.multiprocessing.spawn(  # pyright: ignore[reportPrivateImportUsage]
            _worker, (recipe, folder, told), nprocs=recipe.workers, join=False
        )
        assert workers is not None, "spawn joined by itself"
        while not workers.join(timeout=HEAR_SECONDS):
            hear()
    except (ProcessRaisedException, ProcessExitedException) as error:
        hear()
        if not failed:
            raise
        raise failed[0] from error
    hear()


def _worker(rank: int, recipe: Pretrain, folder: Path, told: SimpleQueue[Any]) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        dist.init_process_group("gloo", rank=rank, world_size=recipe.workers)
        trainer = Trainer(recipe, rank, told.put)
        with writing(recipe.work):
            trainer.run()
        if rank == 0:
            with writing(recipe.out):
                trainer.finish(folder)
        dist.destroy_process_group()
    except (FedMoEError, OSError) as error:
        told.put(error)  # torch hands on the text of a traceback alone
        raise


def new_model(shape: ModelShape, seed: int) -> OlmoeForCausalLM:
    """Return an untrained model whose experts run on this project's fast path."""
    torch.manual_seed(derive(seed, "init"))
    ExpertsInterface.register("fedmoe", experts_forward)
    sizes = asdict(shape)
    config = OlmoeConfig(
        num_experts_per_tok=sizes.pop("top_k"),
        **sizes,
        num_key_value_heads=shape.num_attention_heads,
        max_position_embeddings=MOST_BLOCK,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        router_aux_loss_coef=0.01,
    )
    model = OlmoeForCausalLM(config)
    model.set_experts_implementation("fedmoe")
    return model


def new_gates(model: OlmoeForCausalLM, recipe: Pretrain) -> Gates:
    """Return the model's routers under the recipe's gating, with the tensors it trains."""
    gates = Gates(moe_layers(model), recipe.gating, "olmoe", recipe.model.top_k)
    gates.bind({name: nn.Parameter(torch.zeros(shape)) for name, shape, _ in gates.tensors()})
    return gates


def halves(top_k: int) -> list[int]:
    """Return `top_k` halved down to 1, rounding down: 8, 4, 2, 1."""
    return [top_k >> n for n in range(top_k.bit_length())]


class Trainer:
    """The state of one worker: the model, its optimiser, the step it has reached."""

    def __init__(self, recipe: Pretrain, rank: int, progress: Progress = lambda row: None) -> None:
        self.progress = progress
        self.recipe, self.rank, self.step, self.seconds = recipe, rank, 0, 0.0
        self.agreement: float | None = None
        self.work = expanded(recipe.work)
        self.model = new_model(recipe.model, recipe.seed)
        named = dict(self.model.named_parameters())
        decay = [p for n, p in named.items() if p.dim() > 1]
        rest = [p for n, p in named.items() if p.dim() <= 1]
        self.gates = new_gates(self.model, recipe)
        rest += self.gates.noises
        self.parameters = decay + rest
        groups = [
            {"params": decay, "weight_decay": recipe.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True
        )
        tokens = works.tokens(self.work)
        held_out = HELD_OUT * recipe.block
        self.validation, self.tokens = tokens[: held_out + 1], tokens[held_out + 1 :]
        self._restore()

    def run(self) -> None:
        """Train to the last step, with a log and checkpoints."""
        saved = began = time.monotonic()
        before = self.seconds
        while self.step < self.recipe.steps:
            losses = self._train_step(self._batch())
            self.step += 1
            self.seconds = before + time.monotonic() - began
            last = self.step == self.recipe.steps
            if self.rank == 0 and (last or self.step % LOG_STEPS == 0):
                self._log(losses)
            # Every worker must reach the barrier of a checkpoint at the same step.
            due = torch.tensor(float(time.monotonic() - saved > CHECKPOINT_SECONDS))
            dist.broadcast(due, 0)
            if due:
                self._save()
                saved = time.monotonic()
        self._save()

    def _batch(self) -> Tensor:
        """Return this worker's tokens (sequences, block + 1) of the current step."""
        recipe = self.recipe
        per_epoch = (len(self.tokens) - 2 * recipe.block) // recipe.block // recipe.batch_size
        epoch, step = divmod(self.step, per_epoch)
        starts = corpus.blocks(self.tokens, recipe.block, recipe.seed, epoch)
        mine = starts[step * recipe.batch_size : (step + 1) * recipe.batch_size][
            self.rank :: recipe.workers
        ]
        return torch.from_numpy(
            np.stack([self.tokens[s : s + recipe.block + 1] for s in mine]).astype(np.int64)
        )

    def _train_step(self, batch: Tensor) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        losses = self._losses(batch)
        torch.stack(list(losses.values())).sum().backward()
        flat = torch.cat([p.grad.view(-1) for p in self.parameters])  # pyright: ignore
        dist.all_reduce(flat)
        flat /= self.recipe.workers
        flat *= min(1.0, 1.0 / (flat.norm().item() + 1e-6))
        start = 0
        for p in self.parameters:
            p.grad = flat[start : start + p.numel()].view_as(p)
            start += p.numel()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {name: loss.item() for name, loss in losses.items()}

    def _losses(self, batch: Tensor) -> dict[str, Tensor]:
        recipe = self.recipe
        chance = generator(recipe.seed, "gating", self.step, self.rank)
        with router_training(self.gates, recipe.losses, chance) as routers:
            routers.turn.agreement = self.agreement
            routers.begin(self.step / recipe.steps)
            out = self.model.model(batch[:, :-1], use_cache=False)
            routing = routers.loss(torch.ones(batch[:, :-1].shape, dtype=torch.bool))
        self.agreement = routers.turn.settled()
        return {
            "loss": self._cross_entropy(out.last_hidden_state, batch),
            **({} if routing is None else {"routing": routing}),
        }

    def _cross_entropy(self, hidden: Tensor, batch: Tensor) -> Tensor:
        weight, targets = self.model.lm_head.weight, batch[:, 1:].flatten()
        return F.linear_cross_entropy(hidden.flatten(0, 1), weight, targets)

    def _learning_rate(self) -> float:
        recipe = self.recipe
        left = (recipe.steps - self.step) / max(1.0, recipe.decay_share * recipe.steps)
        return recipe.learning_rate * min(1.0, (self.step + 1) / recipe.warmup_steps, left)

    @torch.no_grad()
    def validate(self) -> dict[str, object]:
        """Return the held-out loss, that with fewer experts per token, and each expert's load.

        `loss_by_top_k` halves the model's k down to 1. `expert_load` is each expert's share of the
        routed rows of its layer, at the model's k.
        """
        shape = self.recipe.model
        losses: dict[str, float] = {}
        load: list[list[float]] = []
        for top_k in halves(shape.top_k):
            set_top_k(self.gates.layers, top_k)
            with self.gates.recording() as seen:
                losses[str(top_k)] = self._held_out_loss()
                routed = [layer.index.flatten() for layer in seen]
            chosen = [index[index < shape.num_experts] for index in routed]
            counts = [torch.bincount(c, minlength=shape.num_experts) / len(c) for c in chosen]
            load = load or [count.tolist() for count in counts]
        set_top_k(self.gates.layers, shape.top_k)
        full = losses[str(shape.top_k)]
        return {"validation_loss": full, "loss_by_top_k": losses, "expert_load": load}

    def _held_out_loss(self) -> float:
        batch = torch.from_numpy(self.validation[:-1].astype(np.int64)).view(-1, self.recipe.block)
        out = self.model.model(batch[:, :-1], use_cache=False)
        return self._cross_entropy(out.last_hidden_state, batch).item()

    def _log(self, losses: dict[str, float]) -> None:
        line = {"step": self.step, "tokens": self.step * self.recipe.batch_size * self.recipe.block}
        line |= {"seconds": round(self.seconds), "learning_rate": self._learning_rate(), **losses}
        if self.step % VALIDATION_STEPS == 0:
            line |= self.validate()
        with (self.work / works.LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.progress(line)

    def _save(self) -> None:
        mine = torch.tensor(math.nan if self.agreement is None else self.agreement)
        agreements = [torch.empty_like(mine) for _ in range(self.recipe.workers)]
        dist.all_gather(agreements, mine)  # and a barrier
        if self.rank == 0:
            state = {"agreements": torch.stack(agreements)}
            state |= {f"model.{i}": p.data for i, p in enumerate(self.parameters)}
            for i, p in enumerate(self.parameters):
                moments = self.optimizer.state[p]
                state |= {f"{m}.{i}": moments[m] for m in ("exp_avg", "exp_avg_sq", "step")}
            state["progress"] = torch.tensor([self.step, self.seconds], dtype=torch.float64)
            works.save_checkpoint(self.work, state)
        dist.barrier()

    def _restore(self) -> None:
        state = works.load_checkpoint(self.work)
        if not state:
            return
        for i, p in enumerate(self.parameters):
            p.data.copy_(state[f"model.{i}"])
            self.optimizer.state[p] = {
                m: state[f"{m}.{i}"] for m in ("exp_avg", "exp_avg_sq", "step")
            }
        self.step, self.seconds = int(state["progress"][0]), float(state["progress"][1])
        mine = float(state["agreements"][self.rank])
        self.agreement = None if math.isnan(mine) else mine

    def finish(self, folder: Path) -> None:
        """Write the model (bf16), its tokenizer and its card."""
        recipe = self.recipe
        facts = self.validate() | {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "tokens_seen": self.step * recipe.batch_size * recipe.block,
            "seconds": round(self.seconds),
            "recipe": {k: v for k, v in asdict(recipe).items() if k not in PATHS},
            "sources": works.sources(self.work),
        }
        self.model.bfloat16().save_pretrained(folder)
        corpus.tokenizer_of(self.work).save_pretrained(folder)
        write_card(folder, facts, works.read_log(self.work))
