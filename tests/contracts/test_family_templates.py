"""Folders as families publish them: `check` shows what is learnt of a conversation, and a step of
training learns it."""

import json

import pytest
from family_folders import FOLDERS, family_folder

from fedmoe.cli.main import main
from fedmoe.config import load_experiment
from fedmoe.rounds import run_rounds
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.prepare import prepare

SMALL = """
rounds: 1
clients_per_round: 2
data: {name: files}
text: {max_length: 400}
adapter: {rank: 2}
partition: {name: iid, num_clients: 2}
budget: {tiers: {low: {top_k: 1}}}
training: {steps: 1, batch_size: 2, probe_examples: 2, learning_rate: 1e-2}
evaluation: {validation_examples: 2, test_examples: 2}
"""


CASES = [*((kind, True) for kind in FOLDERS), ("mixtral", False), ("deepseek_v3", False)]


@pytest.mark.filterwarnings("ignore:.*no token for what its vocabulary lacks")
@pytest.mark.parametrize(("kind", "template"), CASES)
def test_conversations_are_shown_and_learnt(kind, template, tmp_path, capsys):
    folder = family_folder(kind, tmp_path / "model", template)
    rows = tmp_path / "rows.jsonl"
    first = [{"role": "system", "content": "Be brief."}]
    talk = [("user", "hi {}"), ("assistant", " ho {}"), ("user", "<eos>"), ("assistant", "yes")]
    every = [
        {"messages": first + [{"role": r, "content": text.format(n)} for r, text in talk]}
        for n in range(12)
    ]
    rows.write_text("\n".join(map(json.dumps, every)))
    config = tmp_path / "small.yaml"
    config.write_text(SMALL)
    own = [f"model.path={folder}", f"data.path={rows}"]
    assert main(["check", str(config), *own, "--show", "2"]) == 0
    said = capsys.readouterr().out.replace("learnt between « and »", "")
    assert "template: the tokenizer's own" in said if template else "template: plain" in said
    learnt = [part.split("»")[0] for part in said.split("«")[1:]]
    assert len(learnt) >= 2
    assert all("ho" in part or "yes" in part for part in learnt)

    prepared = prepare(load_experiment(config, own))
    transport, answers = InProcess(prepared.server, prepared.scorer), []
    state, e = prepared.server.first_state(), prepared.setup.experiment
    members = prepared.server.members
    after = run_rounds(
        state,
        members,
        e.aggregation,
        lambda tasks: (answers.append(a) or a for a in transport(tasks)),
        [],
        num_rounds=1,
        clients_per_round=2,
        seed=0,
    )
    assert len(answers) == 2
    assert after is not state
    assert all(0 < answer.loss_before < 20 for answer in answers)
