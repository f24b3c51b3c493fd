"""Limits of the box, read from recorded trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime_adapters.cgroups import cpu_limit, groups, memory_limit, memory_limits
from runtime_adapters.memory_reading import read_memory
from tests.unit.runtime_adapters.boxes import (
    DOCKER_V2,
    GIB,
    KUBERNETES_V1,
    KUBERNETES_V2_HOST_NAMESPACE,
    MIB,
    NO_GROUPS,
    OUTSIDE_THE_NAMESPACE,
    SANDBOX_V1,
    SYSTEMD_SLICE,
    Box,
    build,
    limited_v1,
)

MACHINE_BYTES = 64 * GIB


@pytest.mark.parametrize(
    ("box", "limit_bytes", "said"),
    [
        pytest.param(KUBERNETES_V1, 4 * GIB, "memory.limit_in_bytes", id="kubernetes-v1"),
        pytest.param(KUBERNETES_V2_HOST_NAMESPACE, 6 * GIB, "pod1f2e.slice", id="kubernetes-v2, the pod is tighter"),
        pytest.param(DOCKER_V2, 900 * MIB, "memory.high", id="docker-v2, throttled before it is killed"),
        pytest.param(SYSTEMD_SLICE, 16 * GIB, "/system.slice ", id="systemd, a limit on the slice"),
        pytest.param(OUTSIDE_THE_NAMESPACE, 900 * MIB, "memory.high", id="outside the namespace"),
        pytest.param(SANDBOX_V1, 24684084 << 10, "machine's memory", id="sandbox-v1, recorded, no limit"),
        pytest.param(NO_GROUPS, MACHINE_BYTES, "machine's memory", id="no control groups"),
    ],
)
def test_the_tightest_memory_limit_on_the_way_to_the_root_counts(
    tmp_path: Path, box: Box, limit_bytes: int, said: str
) -> None:
    limit = memory_limit(build(box, tmp_path))
    assert limit.limit_bytes == limit_bytes
    assert said in limit.source


@pytest.mark.parametrize(
    ("box", "affinity", "cpus"),
    [
        pytest.param(KUBERNETES_V1, 16, 2.5, id="kubernetes-v1, a quota"),
        pytest.param(KUBERNETES_V2_HOST_NAMESPACE, 16, 1.5, id="kubernetes-v2, the pod's quota"),
        pytest.param(DOCKER_V2, 16, 2.0, id="docker-v2, a quota below the CPU set"),
        pytest.param(DOCKER_V2 | {"sys/fs/cgroup/cpu.max": "max 100000\n"}, 16, 5.0, id="a CPU set of 0-3,8"),
        pytest.param(SYSTEMD_SLICE, 8, 8.0, id="no quota"),
        pytest.param(SANDBOX_V1, 16, 2.0, id="sandbox-v1, recorded, a CPU set"),
        pytest.param(KUBERNETES_V1, 1, 1.0, id="affinity is tighter than the quota"),
        pytest.param(NO_GROUPS, 3, 3.0, id="no control groups"),
    ],
)
def test_the_tightest_of_quota_cpu_set_and_affinity_counts(
    tmp_path: Path, box: Box, affinity: int, cpus: float
) -> None:
    assert cpu_limit(build(box, tmp_path), affinity).cpus == cpus


def test_a_limit_that_version_1_passes_down_from_an_invisible_group_is_seen(tmp_path: Path) -> None:
    box = limited_v1(4 * GIB, 1 * GIB)
    box["sys/fs/cgroup/memory/memory.stat"] = f"hierarchical_memory_limit {2 * GIB}\n"
    limit = memory_limit(build(box, tmp_path))
    assert limit.limit_bytes == 2 * GIB
    assert "hierarchical_memory_limit" in limit.source


def test_groups_are_listed_from_the_own_one_upwards(tmp_path: Path) -> None:
    names = [group.name for group in groups("memory", build(SYSTEMD_SLICE, tmp_path))]
    assert names == ["/system.slice/hexcomb\\x2dpod.service", "/system.slice", "/"]


def test_a_group_limit_above_the_machine_s_memory_is_none(tmp_path: Path) -> None:
    limits = memory_limits(build(limited_v1(MACHINE_BYTES * 2, GIB), tmp_path))
    assert [limit.limit_bytes for limit in limits] == [MACHINE_BYTES]


def test_an_empty_tree_limits_nothing_and_raises_nothing(tmp_path: Path) -> None:
    assert memory_limit(tmp_path).limit_bytes == 0
    assert cpu_limit(tmp_path, 4).cpus == 4.0
    assert read_memory(tmp_path).used_bytes == 0


def test_a_file_with_something_else_in_it_is_no_limit(tmp_path: Path) -> None:
    box = DOCKER_V2 | {f"sys/fs/cgroup/{name}": "??\n" for name in ("memory.max", "memory.high", "cpu.max")}
    root = build(box | {"sys/fs/cgroup/cpuset.cpus.effective": "a-b\n"}, tmp_path)
    assert memory_limit(root).limit_bytes == MACHINE_BYTES
    assert cpu_limit(root, 4).cpus == 4.0


def test_a_version_1_reading_counts_the_group_with_all_below_it(tmp_path: Path) -> None:
    reading = read_memory(build(KUBERNETES_V1, tmp_path))
    assert reading.limit_bytes == 4 * GIB
    assert reading.used_bytes == 3 * GIB
    assert reading.working_set_bytes == 2 * GIB
    assert reading.unreclaimable_bytes == 3 * GIB - GIB - GIB // 2
    assert reading.headroom_bytes == 4 * GIB - reading.unreclaimable_bytes
    assert (reading.major_faults, reading.refaults, reading.oom_kills) == (42, 33, 2)
    assert (reading.stalled_us, reading.stopped_us) == (11, 5), "version 1 has no pressure of its own"


def test_a_reading_is_about_the_limit_with_the_least_room(tmp_path: Path) -> None:
    reading = read_memory(build(KUBERNETES_V2_HOST_NAMESPACE, tmp_path))
    assert "pod1f2e.slice " in reading.source, "the pod's group has 1.75 GiB left, the container's 6.75"
    assert reading.headroom_bytes == 6 * GIB - (5 * GIB - GIB // 2 - GIB // 4)
    assert (reading.stalled_us, reading.stopped_us, reading.refaults) == (123456, 23456, 500)


def test_a_machine_that_is_full_counts_although_the_container_has_room(tmp_path: Path) -> None:
    meminfo = f"MemTotal: {64 << 20} kB\nMemFree: 1000 kB\nMemAvailable: 2000 kB\n"
    reading = read_memory(build(KUBERNETES_V1 | {"proc/meminfo": meminfo}, tmp_path))
    assert "machine" in reading.source
    assert reading.headroom_bytes == 2000 << 10


def test_this_machine_has_some_limits(tmp_path: Path) -> None:
    assert memory_limit().limit_bytes > 0
    assert cpu_limit().cpus > 0
    assert read_memory().used_bytes > 0
