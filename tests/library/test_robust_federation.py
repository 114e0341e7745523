"""Robust rules in a federation in memory: settings, root rows, and what the ledger says."""

import json

import pytest

import fedmoe as fm
from fedmoe.aggregation.robust import Clip
from fedmoe.aggregation.robust.fltrust import FLTrust
from fedmoe.report.ledger import read_ledger
from fedmoe.report.robust import robust_rule
from fedmoe.report.run import read_run

WORDS = ("yes", "no", "left", "right", "up", "down")
ROWS = [(f"say {word}", word) for word in WORDS]


def federation(model, **settings):
    clients = [fm.Client(ROWS[i : i + 2], name=f"site-{i}") for i in range(3)]
    held_out = {"validation": ROWS[4:5], "test": ROWS[5:]}
    small = fm.Training(steps=1, batch_size=2)
    lora = fm.LoRA(rank=2)
    return fm.Federation(model, clients, training=small, lora=lora, **held_out, **settings)


def test_the_servers_own_rows_train_its_own_update(tiny_folder, tmp_path):
    path = tmp_path / "root.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in ROWS[:3]))
    fed = federation(tiny_folder, robust=FLTrust(root=str(path)))
    plain = federation(tiny_folder, robust={"name": "none"})
    state, updates = fed.round(fed.init())
    assert state.adapter.digest() != plain.combine(fed.init(), updates).adapter.digest()
    assert state.adapter.digest() == fed.combine(fed.init(), updates).adapter.digest()
    path.write_text("")
    with pytest.raises(fm.FedMoEError, match=r"root\.jsonl"):
        fed.combine(fed.init(), updates)


def test_what_a_rule_did_is_in_the_ledger_and_on_the_page(tiny_folder, tmp_path):
    fed = federation(tiny_folder, robust=Clip(most_share=0.4, most_norm=1.0), rounds=1)
    folder = fed.run(tmp_path).folder
    (line,) = [r for r in read_ledger(folder / "ledger.jsonl") if r["kind"] == "robust"]
    assert (line["rule"], line["round"], [v["client"] for v in line["clients"]]) == (
        "clip",
        1,
        [0, 1, 2],
    )
    assert any(v["clipped"] > 0 for v in line["clients"])
    table = robust_rule(read_run(folder))
    assert [row[0] for row in table.rows] == ["0", "1", "2"]
    assert "By clip" in table.note
    assert "Robust rule" in (folder / "report.html").read_text()
