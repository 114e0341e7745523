"""A folder that is worked in: nobody else may, and a killed process keeps it from nobody."""

import os
import signal
import sys

import pytest

from fedmoe.errors import FedMoEError
from fedmoe.system.locks import alone_in

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def is_free(folder):
    try:
        with alone_in(folder):
            return True
    except FedMoEError as error:
        return f"another process is at work in {folder}" not in str(error)


def is_free_for_another(folder):
    if (child := os.fork()) == 0:
        code = 2
        try:
            code = int(is_free(folder))
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1)
    return bool(code)


def test_nobody_else_can_work_in_a_folder_nor_this_process_twice(tmp_path):
    with alone_in(tmp_path):
        assert not is_free(tmp_path)
        assert not is_free_for_another(tmp_path), "nor since this process has asked, too"
    assert is_free_for_another(tmp_path)
    assert is_free(tmp_path)


def test_what_a_killed_process_has_forked_does_not_keep_its_folder(tmp_path):
    hears, tells = os.pipe()
    if (run := os.fork()) == 0:
        try:
            with alone_in(tmp_path):
                if worker := os.fork():
                    os.write(tells, b"%d" % worker)
                    os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()
        finally:
            os._exit(1)
    os.waitpid(run, 0)
    os.close(tells)
    worker = int(os.read(hears, 20))
    os.close(hears)
    try:
        assert is_free(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)
