"""Scoring the global adapter as a tier's clients would use it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedmoe.evaluation.evaluate import evaluate
from fedmoe.runs.own_data import SERVER

if TYPE_CHECKING:
    from fedmoe.evaluation.evaluate import Evaluation, EvaluationSet
    from fedmoe.messages.records import Message
    from fedmoe.runs.client_side import ClientSide


@dataclass(frozen=True, eq=False)
class Scorer:
    """Holds evaluation sets, and the client side whose model and subsets they are scored with."""

    client: ClientSide
    sets: dict[str, EvaluationSet]

    def score(self, message: Message, split: str) -> Evaluation:
        """Return the scores of the task in a message, on one split, at the task's tier and k."""
        client, setup = self.client, self.client.setup
        task = client.unpack(message) if split == SERVER else client.read_task(message)
        adapter = client.deployed_adapter(task)
        client.configure(task, adapter)
        (result,) = evaluate(
            setup.model,
            setup.tokenizer,
            self.sets[split],
            adapter,
            {task.tier: (task.top_k, task.rescaler)},
            setup.experiment.evaluation.batch_size,
            task.round - 1,
        )
        if setup.experiment.aggregation.personal:
            return replace(result, by_client={task.client: result.by_label})
        return result
