"""The guides' Python runs: components of one's own, as `fedmoe/README.md` shows them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fedmoe as fm
from fedmoe.data import Example, check_disjoint, load_splits
from fedmoe.evaluation.settings import EvaluationSettings

GUIDES = Path(fm.__file__).parent


@pytest.fixture(scope="module")
def guide():
    """The names that the guide's blocks define."""
    text = (GUIDES / "README.md").read_text()
    names = {"__name__": "guide"}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "fedmoe/README.md", "exec"), names)
    return names


def test_a_dataset_and_a_metric_are_as_the_guide_says(guide):
    splits = load_splits(guide["Sums"](), seed=0)
    check_disjoint(splits)
    assert {example.label for example in splits.train} == {f"plus {b}" for b in range(6)}
    example = Example("what is 1 plus 2", "it is 3", "")
    assert [guide["same_number"](example, answer) for answer in ("3", "it is 4", "")] == [1, 0, 0]


def test_a_strategy_moves_values_by_the_median(guide):
    rows = list(load_splits(guide["Sums"](), seed=0).train)
    clients = [fm.Client(rows[i::3]) for i in range(3)]
    fed = fm.Federation(
        "mini",
        clients,
        strategy=guide["Median"](step=0.5),
        lora=fm.LoRA(rank=2),
        training=fm.Training(steps=1, batch_size=2, probe_examples=2),
        evaluation=EvaluationSettings(metric=guide["same_number"]),
    )
    start = fed.init()
    state, updates = fed.round(start)
    deltas = torch.stack([update.delta.flat for update in updates])
    torch.testing.assert_close(
        state.adapter.flat, start.adapter.flat + 0.5 * deltas.sort(dim=0).values[1]
    )
    assert replace(fed.experiment.aggregation, step=1.0).step == 1.0


def test_a_local_step_trains_and_reports_as_the_guide_says(guide):
    rows = list(load_splits(guide["Sums"](), seed=0).train)
    small = {"lora": fm.LoRA(rank=2), "training": fm.Training(batch_size=4, probe_examples=8)}
    fed = fm.Federation("mini", [fm.Client(rows)], local=guide["sgd"], **small)
    (update,) = fed.round(fed.init())[1]
    assert update.steps == 20
    assert update.metrics["largest_value"] > 0
    assert update.loss_after < update.loss_before


@pytest.mark.parametrize("guide", ["README.md", "models/families/README.md"])
def test_guides_are_short_and_name_files_that_exist(guide):
    path = GUIDES / guide
    text = path.read_text()
    assert len(text.split()) <= 900
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / link).exists(), link
