"""A client that withholds its name: the same in every round, and nobody's guess."""

import stat

import pytest

from clients.own_rows import alias, own_rows, rows_here, salt_of
from fedmoe.data.federated import Federated
from fedmoe.errors import FedMoEError


def test_equal_names_and_paths_on_two_nodes_are_two_clients(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "response": "b"}\n')
    found = []
    for node in ("one", "two"):
        report = "labels score"
        config = {"data": f"rows={rows}", "report": report, "state": str(tmp_path / node)}
        (name,) = own_rows(config, {}).digests
        assert [*own_rows(config, {}).digests] == [name]
        here = rows_here(Federated(), config["data"], report.split(), config["state"])
        assert [*here.path] == [name]  # in its worker, too
        found.append(name)
    assert len({*found}) == 2
    assert all(name.startswith("withheld-") and "rows" not in name for name in found)


def test_the_salt_is_its_owners_and_stays(tmp_path):
    state = tmp_path / "new" / "state"
    salt = salt_of(str(state))
    assert salt_of(str(state)) == salt != salt_of(str(tmp_path / "other"))
    (path,) = state.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert alias("a", salt) != alias("b", salt)
    path.write_bytes(b"short")
    with pytest.raises(FedMoEError, match="5 bytes; expected 32"):
        salt_of(str(state))
    (tmp_path / "file").touch()
    for place, said in (
        ("", "set `state` to a folder"),
        (str(tmp_path / "file"), "Not a dir|exists"),
    ):
        with pytest.raises(FedMoEError, match=said):
            salt_of(place)
