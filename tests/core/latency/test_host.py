"""Description of the host: usable processors, a container's quota, and the time of waiting for a processor."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from onnx_release.latency.host import CpuWait, cgroup_quota, describe_host, usable_cpus


def test_the_host_is_described() -> None:
    host = describe_host()
    assert 1 <= host.usable_cpus <= host.logical_cpus
    assert host.cpu_model
    assert usable_cpus() == host.usable_cpus


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
        ({"cpu.max": "nonsense"}, None),
    ],
)
def test_a_containers_quota_limits_the_usable_cpus(tmp_path: Path, files: dict[str, str], cpus: float | None) -> None:
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert cgroup_quota(tmp_path) == cpus


def test_the_wait_for_a_cpu_is_a_share() -> None:
    wait = CpuWait()
    sum(range(10**6))
    share = wait.share()
    assert share is None or 0 <= share <= 1


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not count waiting")
def test_threads_that_share_one_cpu_wait_for_it() -> None:
    # hashlib releases the interpreter's lock, so both threads are ready to run on one CPU.
    affinity = os.sched_getaffinity(0)
    block = bytes(1 << 22)

    def work() -> None:
        os.sched_setaffinity(0, {min(affinity)})
        for _ in range(20):
            hashlib.sha256(block)
        done.wait()

    done = threading.Barrier(3)
    threads = [threading.Thread(target=work) for _ in range(2)]
    wait = CpuWait()
    for thread in threads:
        thread.start()
    # A thread's count ends with the thread. So read the counts while both threads wait at the barrier.
    while done.n_waiting < 2:
        time.sleep(0.01)
    share = wait.share()
    done.wait()
    for thread in threads:
        thread.join()
    assert share is not None
    assert share > 0.2
