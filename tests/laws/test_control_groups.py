"""Where the kernel counts what it kills for memory, and what a plan makes of a full disk."""

from dataclasses import replace

import pytest
from shapes import SHAPE

from fedmoe.budget.model import Constants, memory
from fedmoe.budget.plan import plan_for
from fedmoe.budget.probe import Machine
from fedmoe.budget.work import Work
from fedmoe.system.control_groups import oom_events, oom_kills

TOP = "sys/fs/cgroup"
WORK = Work(10, 8, 1, False, 4, 64, 16, 32, 8)


@pytest.fixture
def tree(tmp_path):
    """A function that writes files under a root."""

    def make(files):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("group", "path"),
    [
        ("0::/slice/pod\n", f"{TOP}/slice/pod/memory.events"),
        ("0::/a/host's/path/that/is/not/here\n", f"{TOP}/memory.events"),
        ("4:memory:/a\n0::/\n", f"{TOP}/memory/a/memory.oom_control"),
    ],
)
def test_kills_are_counted_in_the_innermost_group_of_the_process(tree, group, path):
    root = tree(
        {
            "proc/7/cgroup": group,
            "proc/8/cgroup": "0::/elsewhere\n",
            path: "oom_kill_disable 0\nunder_oom 0\noom 9\noom_kill 3\n",
        }
    )
    events = oom_events(7, root)
    assert events == root / path
    assert oom_kills(events) == 3
    events.write_text("oom_kill 4\n")
    assert oom_kills(events) == 4


def test_without_a_group_to_read_nothing_was_killed(tree):
    root = tree({"proc/7/cgroup": "0::/\n", f"{TOP}/cgroup.procs": "7\n"})
    assert oom_events(7, root) is None
    assert oom_events(9, root) is None
    assert oom_kills(None) == 0


@pytest.mark.parametrize(
    ("on_gpu", "where"), [(False, "the disk of TMPDIR"), (True, "main memory")]
)
def test_offload_needs_room_where_the_experts_go(on_gpu, where):
    shape = replace(SHAPE, on_gpu=on_gpu)
    least = replace(WORK.with_batch(1), recompute=True, offload=True)
    free = round(memory(shape, least.setting(1, longest=True), Constants()).total / 0.9) + 2
    machine = Machine("m", free, free, on_gpu, 1)
    experts = shape.experts_bytes("full")
    for room, fits in ((None, True), (2 * experts, True), (experts, False), (0, False)):
        made = plan_for(shape, WORK, replace(machine, offload_bytes=room), Constants())
        assert bool(made.choice and made.choice.work.offload) == fits, room
        said = f"would put 0.03 GB into {where}; "
        assert any(said in reason for reason in made.reasons) != fits
