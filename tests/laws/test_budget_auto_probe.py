"""A machine's free memory: the least that the kernel and any control group leave."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fedmoe.budget.probe import Machine, probe
from fedmoe.config.load import load
from fedmoe.devices import Device
from fedmoe.system.machine import main_memory, num_threads

ROOT = Path(__file__).parents[2]
GB = 10**9


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A function that writes files under a root, where 6 of 8 GiB of memory are free."""
    memory = SimpleNamespace(total=8 * 2**30, available=6 * 2**30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)

    def make(**files):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        return tmp_path

    return make


def test_without_control_groups_the_kernel_decides(tree):
    assert main_memory(tree()) == (6 * 2**30, 8 * 2**30)


def test_version_2_counts_idle_cache_as_free_and_takes_the_tightest_group(tree):
    top = "sys/fs/cgroup"
    root = tree(
        **{
            "proc/self/cgroup": "0::/slice/pod\n",
            f"{top}/slice/memory.max": f"{2 * GB}\n",
            f"{top}/slice/memory.current": f"{1 * GB}\n",
            f"{top}/slice/memory.stat": "anon 1\ninactive_file 200000000\n",
            f"{top}/slice/pod/memory.max": "max\n",
            f"{top}/slice/pod/memory.current": "5\n",
        }
    )
    assert main_memory(root) == (1_200_000_000, 2 * GB)


def test_inside_a_container_the_mount_is_the_group_itself(tree):
    root = tree(
        **{
            "proc/self/cgroup": "0::/host/path/that/is/not/here\n",
            "sys/fs/cgroup/memory.max": f"{GB}\n",
            "sys/fs/cgroup/memory.current": f"{GB // 4}\n",
        }
    )
    assert main_memory(root) == (750_000_000, GB)


def test_version_1_has_names_of_its_own_and_an_absent_limit_is_a_huge_number(tree):
    top = "sys/fs/cgroup/memory"
    root = tree(
        **{
            "proc/self/cgroup": "4:memory:/a\n1:cpu,cpuacct:/a\n",
            f"{top}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{top}/memory.usage_in_bytes": "77\n",
            f"{top}/a/memory.limit_in_bytes": f"{3 * GB}\n",
            f"{top}/a/memory.usage_in_bytes": f"{4 * GB}\n",
            f"{top}/a/memory.stat": "inactive_file 5\ntotal_inactive_file 500000000\n",
        }
    )
    assert main_memory(root) == (0, 3 * GB)


def test_a_quota_of_processor_time_limits_threads(tree):
    base = tree(**{"proc/self/cgroup": "0::/\n"})
    unlimited = num_threads(base)
    assert num_threads(tree(**{"sys/fs/cgroup/cpu.max": "max 100000\n"})) == unlimited
    assert num_threads(tree(**{"sys/fs/cgroup/cpu.max": "100000 100000\n"})) == 1
    assert num_threads(tree(**{"sys/fs/cgroup/cpu.max": "50000 100000\n"})) == 1
    root = tree(
        **{
            "proc/self/cgroup": "1:cpu,cpuacct:/\n",
            "sys/fs/cgroup/cpu.max": "",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        }
    )
    assert num_threads(root) == 1


def test_this_machine_has_something(tmp_path):
    machine = probe(torch.device("cpu"), folder=tmp_path)
    assert 0 < machine.free_bytes <= machine.total_bytes
    assert machine.threads >= 1
    assert machine.free_disk_bytes is not None
    assert machine.offload_bytes is not None, "of TMPDIR's disk"
    assert not machine.on_gpu


def test_a_gpu_is_asked_and_what_torch_holds_unused_counts_as_free(tmp_path, monkeypatch):
    for name, value in {
        "mem_get_info": (10 * GB, 24 * GB),
        "memory_reserved": 3 * GB,
        "memory_allocated": 2 * GB,
        "get_device_name": "card",
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    machine = probe(torch.device("cuda"), folder=tmp_path)
    assert (machine.label, machine.free_bytes, machine.total_bytes) == ("card", 11 * GB, 24 * GB)
    assert machine.on_gpu
    assert 0 < machine.offload_bytes <= main_memory()[1], "of main memory"


def test_a_profile_is_a_machine_without_probing():
    card = Machine.of_device(load(Device, ROOT / "configs/devices/rtx_4090.yaml"))
    phone = Machine.of_device(load(Device, ROOT / "configs/devices/phone.yaml"))
    assert (card.on_gpu, phone.on_gpu) == (True, False)
    assert 23 * GB < card.free_bytes < card.total_bytes == 24 * GB
    assert phone.link.seconds(4.375e6, 0.375e6) == pytest.approx(0.05 + 1 + 1)
