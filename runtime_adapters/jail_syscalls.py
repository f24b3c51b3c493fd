"""Which system calls a jailed process may not make: a seccomp filter, written as classic BPF.

seccomp needs no privilege (only "no new privileges"), so this is the confinement that every Linux has. The filter is
a list of refusals, not of permissions: which calls a numerical library makes differs by version and CPU, and a list
of permissions would break models at each upgrade. What is refused is everything that reaches out of the process:

* sockets of any family (the network, but also /run/docker.sock), and io_uring, which can open them unseen;
* new processes and programs (threads are allowed);
* signals, tracing and memory access to other processes, and changing their limits, priority or CPUs;
* owners, modes, times and attributes of files, which Landlock does not guard;
* namespaces, mounts, keys, kernel modules, BPF, perf, userfaultfd, System V and POSIX message objects.

A refused call gives EPERM, so a library may fall back; clone3 gives ENOSYS, so that the C library uses clone, whose
flags the filter can read.

What it does not stop: a bug of the kernel in a call that stays allowed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Mapping
from types import MappingProxyType

_ARCHITECTURES = MappingProxyType({"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)})
"""Machine -> column of the table below, and the kernel's audit number of it."""

_X32_CALLS_FROM = 0x40000000
_ABSENT = -1

_REFUSED: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        # reaching out
        "socket": (41, 198),
        "io_uring_setup": (425, 425),
        "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427),
        # new processes and programs
        "fork": (57, _ABSENT),
        "vfork": (58, _ABSENT),
        "execve": (59, 221),
        "execveat": (322, 281),
        # other processes
        "rt_sigqueueinfo": (129, 138),
        "rt_tgsigqueueinfo": (297, 240),
        "tkill": (200, 130),
        "pidfd_send_signal": (424, 424),
        "pidfd_getfd": (438, 438),
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "process_madvise": (440, 440),
        "process_mrelease": (448, 448),
        "sched_setscheduler": (144, 119),
        "sched_setparam": (142, 118),
        "sched_setattr": (314, 274),
        "setpriority": (141, 140),
        "ioprio_set": (251, 30),
        "migrate_pages": (256, 238),
        "move_pages": (279, 239),
        # what Landlock does not guard on files
        "chmod": (90, _ABSENT),
        "fchmod": (91, 52),
        "fchmodat": (268, 53),
        "fchmodat2": (452, 452),
        "chown": (92, _ABSENT),
        "fchown": (93, 55),
        "lchown": (94, _ABSENT),
        "fchownat": (260, 54),
        "utime": (132, _ABSENT),
        "utimes": (235, _ABSENT),
        "futimesat": (261, _ABSENT),
        "utimensat": (280, 88),
        "setxattr": (188, 5),
        "lsetxattr": (189, 6),
        "fsetxattr": (190, 7),
        "removexattr": (197, 14),
        "lremovexattr": (198, 15),
        "fremovexattr": (199, 16),
        "setxattrat": (463, 463),
        "removexattrat": (466, 466),
        "open_by_handle_at": (304, 265),
        "name_to_handle_at": (303, 264),
        # the system
        "unshare": (272, 97),
        "setns": (308, 268),
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
        "chroot": (161, 51),
        "open_tree": (428, 428),
        "move_mount": (429, 429),
        "fsopen": (430, 430),
        "mount_setattr": (442, 442),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "userfaultfd": (323, 282),
        "keyctl": (250, 219),
        "add_key": (248, 217),
        "request_key": (249, 218),
        "init_module": (175, 105),
        "finit_module": (313, 273),
        "delete_module": (176, 106),
        "kexec_load": (246, 104),
        "kexec_file_load": (320, 294),
        "reboot": (169, 142),
        "swapon": (167, 224),
        "swapoff": (168, 225),
        "shmget": (29, 194),
        "msgget": (68, 186),
        "semget": (64, 190),
        "mq_open": (240, 180),
    }
)
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_OWN_PROCESS_ONLY: tuple[tuple[int, int], ...] = ((62, 129), (234, 131))  # kill, tgkill: abort() needs the latter
_OWN_OR_ZERO: tuple[tuple[int, int], ...] = ((302, 261), (203, 122))  # prlimit64, sched_setaffinity
_PRCTL = (157, 167)

_CLONE_THREAD = 0x00010000
_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENT_0 = 0, 4, 16
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def plan_filter(machine: str, own_pid: int) -> list[Instruction] | None:
    """The program for a machine (`os.uname().machine`); None for one whose call numbers are not in the table."""
    if machine not in _ARCHITECTURES:
        return None
    column, audit_number = _ARCHITECTURES[machine]
    allow: Instruction = (_RETURN, 0, 0, _ALLOW)
    refuse: Instruction = (_RETURN, 0, 0, _REFUSE | errno.EPERM)
    argument: Instruction = (_LOAD, 0, 0, _AT_ARGUMENT_0)
    program: list[Instruction] = [
        (_LOAD, 0, 0, _AT_ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, audit_number),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _AT_NUMBER),
    ]
    if machine == "x86_64":
        program += [(_JUMP_AT_LEAST, 0, 1, _X32_CALLS_FROM), refuse]
    for numbers in _REFUSED.values():
        if numbers[column] != _ABSENT:
            program += [(_JUMP_EQUAL, 0, 1, numbers[column]), refuse]
    program += [(_JUMP_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _REFUSE | errno.ENOSYS)]
    program += [(_JUMP_EQUAL, 0, 4, _CLONE[column]), argument, (_JUMP_BITS, 0, 1, _CLONE_THREAD), allow, refuse]
    for numbers in _OWN_PROCESS_ONLY:
        program += [(_JUMP_EQUAL, 0, 4, numbers[column]), argument, (_JUMP_EQUAL, 0, 1, own_pid), allow, refuse]
    for numbers in _OWN_OR_ZERO:
        program += [(_JUMP_EQUAL, 0, 5, numbers[column]), argument, (_JUMP_EQUAL, 1, 0, 0)]
        program += [(_JUMP_EQUAL, 0, 1, own_pid), allow, refuse]
    # The order to die with the pod must not be taken back.
    program += [(_JUMP_EQUAL, 0, 4, _PRCTL[column]), argument, (_JUMP_EQUAL, 1, 0, _PR_SET_PDEATHSIG), allow, refuse]
    return [*program, allow]


def apply_filter() -> str | None:
    """Confine this thread and those it starts, for ever. None on success, else why not."""
    program = plan_filter(os.uname().machine, os.getpid())
    if program is None:
        return f"no table of system calls for {os.uname().machine}"
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    libc = ctypes.CDLL(None, use_errno=True)
    wanted = _Program(len(program), packed)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(wanted), 0, 0) != 0:
        return f"seccomp: {os.strerror(ctypes.get_errno())}"
    return None
