"""`fedmoe check` reads every client's rows, and says what becomes of each row, client and file."""

import json

import pytest

from fedmoe.cli.main import main

CONFIG = """\
name: owners
rounds: 1
model: {{path: {model}}}
adapter: {{rank: 4, alpha: 8.0}}
data: {{name: federated, path: {rows}, unusable: drop}}
text: {{max_length: 64, too_long: drop}}
budget: {{default: low, tiers: {{high: {{top_k: 4, clients: [barn]}}, low: {{top_k: 1}}}}}}
evaluation: {{validation_examples: 1}}
"""

NO_BARN = "budget.tiers.high.clients=[]"


def write_client(folder, name, number, *more):
    rows = [{"prompt": f"{name} asks {n}", "response": f"says {n}"} for n in range(number)]
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, [*rows, *more])))


@pytest.fixture
def checked(tmp_path, tiny_folder, capsys):
    """A function that checks a config, and the folder for its clients' files."""
    rows = tmp_path / "rows"
    rows.mkdir()
    config = tmp_path / "owners.yaml"
    config.write_text(CONFIG.format(model=tiny_folder, rows=rows))

    def check(*overrides):
        code = main(["check", str(config), *overrides])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return check, rows


def cells(shown):
    """The words of each line that begins with a word of its own, by that word."""
    return {words[0]: words[1:] for line in shown.splitlines() if (words := line.split())}


def test_every_row_client_and_file_is_named(checked):
    check, rows = checked
    long = {"prompt": "word " * 99, "response": "a"}
    write_client(rows, "attic", 20, long, long | {"response": "b"}, {"prompt": "", "response": "a"})
    write_client(rows, "barn", 16)
    write_client(rows, "cellar", 1)
    write_client(rows, "den", 0, {"prompt": 1, "response": "a"})
    write_client(rows, "eaves", 0, {"prompt": "a", "response": ["b"]})
    write_client(rows, "loft", 9)
    (rows / "notes.txt").write_text("not rows")
    code, out, _ = check("data.clients=[attic, barn, cellar, den, eaves]")
    assert code == 0
    table = cells(out[out.index("Rows of clients") :])
    assert table["attic"][:2] == ["low", "23"]
    assert table["attic"][-2:] == ["1", "2"]  # empty, too long
    assert table["barn"][:2] == ["high", "16"]
    assert table["cellar"] == ["low", "1", "1", "0", "0", "0", "0"]
    assert table["all"][1] == "40"
    assert cells(out)["high"][:2] == ["barn", "4"]
    assert "rows: 40 read:" in out
    assert "  2 too long: more tokens than text.max_length\n" in out
    for name in ("den", "eaves"):
        assert f"warning: cannot take part: client {name!r}: {rows}/{name}.jsonl" in out
    assert "warning: 13% of the rows of client attic are not used: 23 read" in out
    assert "warning: 8% of the rows of all clients are not used: 40 read" in out
    assert "1 client(s) have no test row: cellar" in out
    assert "take no part: loft" in out
    assert "hold no client's rows, and are not read: notes.txt" in out
    assert "held-out validation rows are scored (evaluation.validation_examples)" in out


@pytest.mark.parametrize("usable", [0, 1])
def test_where_too_few_can_take_part_the_check_fails_with_every_reason(checked, usable):
    check, rows = checked
    for name in ("attic", "barn"):
        write_client(rows, name, 0, {"prompt": 1, "response": "a"})
    if usable:
        write_client(rows, "cellar", 9)
    code, _, err = check("quorum=0.5")
    assert code == 2
    assert f"{usable} of {2 + usable} clients have rows that can be used" in err
    assert all(f"  client {name!r}: {rows}/{name}.jsonl" in err for name in ("attic", "barn"))


def test_of_many_clients_the_worst_and_the_sums_are_shown(checked):
    check, rows = checked
    for n in range(32):
        lost = [{"prompt": "", "response": "a"}] if n == 31 else []
        write_client(rows, f"c{n:02}", 3 if n < 5 else 4, *lost)
    code, out, _ = check(NO_BARN)
    table = cells(out[out.index("Rows of clients") :])
    assert code == 0
    assert "c31" in table
    assert {"c03", "c04"}.isdisjoint(table)
    assert sum(word.startswith("c") and word[1:].isdigit() for word in table) == 30
    assert table["all"][1] == str(32 * 4 - 5 + 1)
    assert "Of 32 clients the 30 that lose most rows" in out


def test_rows_at_nodes_are_not_looked_for(checked):
    check, _ = checked
    code, out, _ = check('data.path=""', "clients_per_round=3")
    assert code == 0
    assert "3 of the clients that are there each" in out
    assert "rows: at the nodes" in out
    assert "0 read" not in out


@pytest.mark.filterwarnings("default::fedmoe.errors.FedMoEWarning")
def test_the_servers_own_rows_are_counted(checked, tmp_path):
    check, rows = checked
    write_client(rows, "attic", 9)
    write_client(tmp_path, "own", 9, {"prompt": "", "response": "a"})
    code, out, err = check(f"data.server_test={tmp_path}/own.jsonl", NO_BARN)
    assert code == 0
    assert "the server scores 9 rows of its own (data.server_test)" in out
    assert f"10% of the rows of data.server_test, {tmp_path}/own.jsonl, are not used" in err
