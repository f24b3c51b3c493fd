"""Boxes that a pod may run in, as the files that the kernel shows there: path -> content.

`SANDBOX_V1` was recorded on a machine (identifiers shortened); the others have the shape that the named platform gives,
with round numbers.
"""

from __future__ import annotations

from pathlib import Path

GIB = 1 << 30
MIB = 1 << 20
Box = dict[str, str]

_MEMINFO_64G = """MemTotal:       67108864 kB
MemFree:        33554432 kB
MemAvailable:   50331648 kB
Active(file):    4194304 kB
Inactive(file):  8388608 kB
"""
_STAT = "1 (hex comb) S 0 1 1 0 -1 4194560 5000 77 42 3 10 20 0 0 20 0 9 0 100 0 0\n"
_MACHINE: Box = {
    "proc/meminfo": _MEMINFO_64G,
    "proc/self/stat": _STAT,
    "proc/vmstat": "nr_free_pages 100\npgmajfault 900\nworkingset_refault_file 70\noom_kill 0\n",
    "proc/pressure/memory": (
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=11\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"
    ),
}
_V1_NO_LIMIT = "9223372036854771712\n"


def _v1_stat(inactive_bytes: int, active_bytes: int, hierarchical: str, refaults: int = 0) -> str:
    # Version 1 gives each number twice: of this group alone, and with all below it (`total_`).
    return (
        f"cache 1\nrss 2\ninactive_file 3\nactive_file 4\nhierarchical_memory_limit {hierarchical.strip()}\n"
        f"total_inactive_file {inactive_bytes}\ntotal_active_file {active_bytes}\ntotal_pgmajfault 12\n"
        f"total_workingset_refault_file {refaults}\n"
    )


_K8S_V1_PATH = "/kubepods/burstable/pod1f2e/3c4d"
KUBERNETES_V1: Box = _MACHINE | {
    # The container's group is mounted at the controller's directory, but /proc/self/cgroup shows the host's path.
    "proc/self/cgroup": f"5:cpuset:{_K8S_V1_PATH}\n4:cpu,cpuacct:{_K8S_V1_PATH}\n3:memory:{_K8S_V1_PATH}\n",
    "proc/self/mountinfo": (
        f"800 790 0:30 {_K8S_V1_PATH} /sys/fs/cgroup/cpu,cpuacct ro,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
        f"801 790 0:31 {_K8S_V1_PATH} /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n"
        f"802 790 0:32 {_K8S_V1_PATH} /sys/fs/cgroup/cpuset ro,nosuid - cgroup cgroup rw,cpuset\n"
    ),
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 * GIB}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
    "sys/fs/cgroup/memory/memory.stat": _v1_stat(GIB, GIB // 2, str(4 * GIB), refaults=33),
    "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpuset/cpuset.cpus": "0-15\n",
}

_K8S_V2_PATH = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1f2e.slice/cri-containerd-3c4d.scope"
_V2 = "sys/fs/cgroup"
KUBERNETES_V2_HOST_NAMESPACE: Box = _MACHINE | {
    # Without a group namespace of its own (a privileged pod, an old runtime) the whole path is visible.
    "proc/self/cgroup": f"0::{_K8S_V2_PATH}\n",
    "proc/self/mountinfo": "500 490 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate\n",
    f"{_V2}/cgroup.controllers": "cpuset cpu io memory pids\n",
    f"{_V2}{_K8S_V2_PATH}/memory.max": f"{8 * GIB}\n",
    f"{_V2}{_K8S_V2_PATH}/memory.high": "max\n",
    f"{_V2}{_K8S_V2_PATH}/memory.current": f"{2 * GIB}\n",
    f"{_V2}{_K8S_V2_PATH}/memory.stat": f"inactive_file {GIB // 2}\nactive_file {GIB // 4}\n",
    f"{_V2}{_K8S_V2_PATH}/cpu.max": "max 100000\n",
    # The pod's own group is tighter than the container's.
    f"{_V2}{Path(_K8S_V2_PATH).parent}/memory.max": f"{6 * GIB}\n",
    f"{_V2}{Path(_K8S_V2_PATH).parent}/memory.current": f"{5 * GIB}\n",
    f"{_V2}{Path(_K8S_V2_PATH).parent}/memory.stat": (
        f"anon {4 * GIB}\nfile {GIB}\ninactive_file {GIB // 2}\nactive_file {GIB // 4}\nworkingset_refault_file 500\n"
    ),
    f"{_V2}{Path(_K8S_V2_PATH).parent}/memory.events": "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n",
    f"{_V2}{Path(_K8S_V2_PATH).parent}/memory.pressure": (
        "some avg10=3.00 avg60=1.00 avg300=0.10 total=123456\nfull avg10=1.00 avg60=0.10 avg300=0.01 total=23456\n"
    ),
    f"{_V2}{Path(_K8S_V2_PATH).parent}/cpu.max": "150000 100000\n",
}

DOCKER_V2: Box = _MACHINE | {
    # A namespace of its own: the container's group looks like the root of the hierarchy.
    "proc/self/cgroup": "0::/\n",
    "proc/self/mountinfo": "700 690 0:27 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,memory_recursiveprot\n",
    f"{_V2}/cgroup.controllers": "cpuset cpu io memory pids\n",
    f"{_V2}/memory.max": f"{GIB}\n",
    f"{_V2}/memory.high": f"{900 * MIB}\n",
    f"{_V2}/memory.current": f"{600 * MIB}\n",
    f"{_V2}/memory.stat": f"inactive_file {100 * MIB}\nactive_file {50 * MIB}\nworkingset_refault 9\n",
    f"{_V2}/memory.events": "oom_kill 0\n",
    f"{_V2}/cpu.max": "200000 100000\n",
    f"{_V2}/cpuset.cpus.effective": "0-3,8\n",
}

SYSTEMD_SLICE: Box = _MACHINE | {
    "proc/self/cgroup": "0::/system.slice/hexcomb\\x2dpod.service\n",
    "proc/self/mountinfo": (
        "24 23 0:21 / /proc rw - proc proc rw\n30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
    ),
    f"{_V2}/cgroup.controllers": "cpuset cpu io memory pids\n",
    f"{_V2}/system.slice/memory.max": f"{16 * GIB}\n",
    f"{_V2}/system.slice/memory.current": f"{10 * GIB}\n",
    f"{_V2}/system.slice/memory.stat": f"inactive_file {GIB}\nactive_file {GIB}\n",
    f"{_V2}/system.slice/hexcomb\\x2dpod.service/memory.max": "max\n",
    f"{_V2}/system.slice/hexcomb\\x2dpod.service/cpu.max": "max 100000\n",
}

OUTSIDE_THE_NAMESPACE: Box = DOCKER_V2 | {
    # A process that was put into the container from without sees its own group above the root.
    "proc/self/cgroup": "0::/../../user.slice\n",
}

SANDBOX_V1: Box = {
    "proc/meminfo": "MemTotal:       24684084 kB\nMemFree:        21037592 kB\nMemAvailable:   23724516 kB\n"
    "Active(file):     173473 kB\nInactive(file):  1174036 kB\n",
    "proc/self/stat": _STAT,
    "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 total=0\n",
    "proc/self/cgroup": (
        "9:name=systemd:/\n8:pids:/\n7:blkio:/\n6:freezer:/\n5:devices:/\n4:memory:/process_api/949e\n3:cpuset:/\n"
        "2:cpuacct:/\n1:cpu:/\n0::/\n"
    ),
    "proc/self/mountinfo": (
        "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
        "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
        "34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
        "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
    ),
    "sys/fs/cgroup/unified/cgroup.controllers": "\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": _V1_NO_LIMIT,
    "sys/fs/cgroup/memory/process_api/949e/memory.limit_in_bytes": _V1_NO_LIMIT,
    "sys/fs/cgroup/memory/process_api/949e/memory.stat": _v1_stat(1174036480, 173473792, _V1_NO_LIMIT),
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpuset/cpuset.cpus": "0-1\n",
}

NO_GROUPS: Box = dict(_MACHINE)


def limited_v1(limit_bytes: int, used_bytes: int, inactive_bytes: int = 0, active_bytes: int = 0) -> Box:
    """A box whose use is chosen by the test."""
    return KUBERNETES_V1 | {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{limit_bytes}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{used_bytes}\n",
        "sys/fs/cgroup/memory/memory.stat": _v1_stat(inactive_bytes, active_bytes, str(limit_bytes)),
    }


def build(box: Box, root: Path) -> Path:
    """Write the files below `root`."""
    for path, content in box.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root
