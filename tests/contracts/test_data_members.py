"""Every built-in dataset loads, is repeatable, and gives its own answers full marks."""

import json

import pytest

from fedmoe.data import DATASETS, Example, HomeAssistant, Memory, Splits, load_splits
from fedmoe.data.federated import Federated, LocalData
from fedmoe.data.files import LocalFiles
from fedmoe.data.hub import HuggingFace
from fedmoe.data.reasoning import ReasoningGym
from fedmoe.errors import DataError


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """One small config of every member of the union, by name."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    path = tmp_path / "rows" / "train.jsonl"
    rows = [{"prompt": f"ask {i}", "response": f"answer {i}"} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    small = [
        HomeAssistant(per_template=4, domains=("organizer", "robots")),
        ReasoningGym(per_task=20),
        LocalFiles(path=str(path)),
        HuggingFace(path=str(path.parent)),
        Memory(rows=rows),
        Federated(path=str(path)),
    ]
    return {config.name: config for config in small}


NAMES = list(DATASETS.names)


def splits_of(config, seed):
    """A member's splits; of one whose rows come split by client, its only client's."""
    if isinstance(config, Federated):
        return LocalData(config).splits("train", seed)
    return load_splits(config, seed)


def test_every_member_is_tested(configs):
    assert sorted(configs) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_members_load_the_same_splits_from_the_same_seed(configs, name):
    splits = splits_of(configs[name], 0)
    assert min(len(splits.train), len(splits.validation), len(splits.test)) > 0
    assert len(splits.train) > len(splits.test)
    assert splits == splits_of(configs[name], 0)
    assert splits != splits_of(configs[name], 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_member_gives_its_own_response_full_marks(configs, name):
    config = configs[name]
    for example in splits_of(config, 0).test:
        assert config.score(example, example.response) == 1.0, example
        assert config.score(example, f" {example.response}\n") == 1.0, example
        assert config.score(example, "banana") < 0.5, example
        assert config.score(example, "") < 0.5, example


def test_a_verifier_accepts_what_exact_match_would_not():
    config = ReasoningGym(tasks=("letter_counting",), per_task=10)
    example = load_splits(config, 0).test[0]
    assert config.score(example, f"{example.response} ") == 1.0
    prime = ReasoningGym(tasks=("prime_factorization",), per_task=30)
    factors = next(e for e in load_splits(prime, 0).train if len(set(e.response.split())) > 2)
    reversed_factors = " ".join(factors.response.split()[::-1])
    assert reversed_factors != factors.response
    assert prime.score(factors, reversed_factors) == 1.0


def test_reasoning_prompts_and_answers_are_short():
    splits = load_splits(ReasoningGym(per_task=40), 0)
    assert max(len(e.prompt) for e in splits.train) < 330
    assert max(len(e.response) for e in splits.train) < 40


def test_splits_of_a_task_have_the_sizes_asked_for():
    # coin_flip repeats itself, so spares are drawn.
    splits = load_splits(ReasoningGym(tasks=("chain_sum", "coin_flip"), per_task=100), 0)
    sizes = len(splits.train), len(splits.validation), len(splits.test)
    assert sizes == (150, 20, 30)


def test_an_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(DataError, match=r"'chain_sums' is not a task.*did you mean chain_sum"):
        load_splits(ReasoningGym(tasks=("chain_sums", "nonsense")), 0)


def test_overlapping_splits_are_never_handed_on(monkeypatch):
    leak = Example("same", "x", "")
    config = HomeAssistant()
    monkeypatch.setattr(HomeAssistant, "load", lambda self, seed: Splits((leak,), (), (leak,)))
    with pytest.raises(DataError, match="overlap"):
        load_splits(config, 0)
