"""What is waited for is said at once, and again with the time spent."""

import sys
import time

import pytest

from fedmoe.system.waiting import waiting


@pytest.mark.parametrize("live", [True, False])
def test_a_wait_is_said_in_lines_or_in_one_line_of_a_terminal(live, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: live)
    with waiting("counting", every=0.05):
        time.sleep(0.3)
    said = capsys.readouterr().err
    assert said.startswith("fedmoe: counting, 0 s")
    assert said.endswith("\n")
    assert said.count("\n") == 1 if live else said.count("\n") >= 3
    time.sleep(0.1)
    assert capsys.readouterr().err == ""
