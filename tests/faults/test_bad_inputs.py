"""The table of bad updates: each is refused under a code, and the server stays up."""

from simulations import bad_inputs


def test_every_bad_update_is_refused_and_the_honest_one_taken(capsys, monkeypatch):
    monkeypatch.setattr(bad_inputs, "RANDOM", 300)
    bad_inputs.main()
    _, _, honest, *rows = [r for r in capsys.readouterr().out.splitlines() if r.startswith("|")]
    assert honest == "| an honest update | taken | |"
    assert len(rows) == len([*bad_inputs.bad(bad_inputs.honest()[1])]) > 20
    assert all("| refused: `" in row for row in rows)
