"""Each wall of the jail, tried from inside by code that came with a model. Real kernel, real processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime_adapters.base import LoadOptions
from runtime_adapters.errors import UntrustedArtifact
from runtime_adapters.isolation import IsolatedModel, load_isolated
from runtime_adapters.jail import JailReport
from runtime_adapters.jail_files import landlock_version
from runtime_adapters.jail_syscalls import plan_filter

_MODEL = """
import ctypes, fcntl, os, pathlib, resource, shutil, signal, socket, subprocess, sys, tempfile, threading
import numpy as np
from runtime_adapters.custom import Model, TensorSpec

libc = ctypes.CDLL(None, use_errno=True)

class Prisoner(Model):
    inputs = (TensorSpec("code", "BYTES", (1,)),)
    outputs = (TensorSpec("outcome", "BYTES", (1,)),)

    def predict(self, inputs):
        names = dict(globals())
        try:
            exec(inputs["code"][0].decode(), names)
        except BaseException as error:
            return np.array([type(error).__name__ + ": " + str(error)])
        return np.array(["done: " + str(names.get("said"))])
"""

pytestmark = pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock: the jail cannot be built")


@pytest.fixture(scope="module")
def prison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    artifact = tmp_path_factory.mktemp("artifact")
    (artifact / "model.py").write_text(_MODEL)
    (artifact / "weights.txt").write_text("0.5")
    return artifact


@pytest.fixture(scope="module")
def prisoner(prison: Path) -> Iterator[IsolatedModel]:
    model = load_isolated("python", prison, LoadOptions("prisoner"), jailed=True)
    yield model
    model.unload()


def _try(prisoner: IsolatedModel, code: str) -> str:
    outcome = prisoner.infer({"code": np.array([code.encode()], dtype=object)})["outcome"][0]
    assert isinstance(outcome, bytes)
    return outcome.decode()


def test_the_report_says_which_walls_stand(prisoner: IsolatedModel) -> None:
    report = prisoner.jail
    assert report is not None
    assert report.confined
    assert report.files == (f"landlock-{landlock_version()}",)
    assert "seccomp" in report.network
    assert report.processes == ("seccomp",)
    assert JailReport.from_json(report.as_json()) == report


@pytest.mark.parametrize(
    "allowed",
    [
        "said = (pathlib.Path.cwd() / 'weights.txt').read_text()",
        "f = tempfile.NamedTemporaryFile(); f.write(b'x'); f.flush(); said = os.path.getsize(f.name)",
        "d = tempfile.mkdtemp(); os.rename(shutil.copy('weights.txt', d), d + '/b') if False else os.rmdir(d)",
        "import decimal, json, sqlite3, xml.dom.minidom",
        "t = threading.Thread(target=print); t.start(); t.join()",
        "open('/dev/null', 'w').write('x'); said = len(os.urandom(8))",
        "said = open('/proc/self/status').read(4)",
        "a, b = socket.socketpair(); a.send(b'x'); said = b.recv(1)",
        "os.kill(os.getpid(), 0)",
    ],
)
def test_what_a_model_needs_works(prisoner: IsolatedModel, allowed: str) -> None:
    assert _try(prisoner, allowed).startswith("done")


@pytest.mark.parametrize(
    "forbidden",
    [
        # the network, and sockets of agents and container engines
        "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
        "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
        "socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        # files
        "os.listdir('/')",
        "os.listdir('/etc')",
        "open('/etc/passwd').read()",
        "open('/etc/shadow').read()",
        "os.listdir('/home')",
        "os.listdir('/root')",
        "os.listdir('/proc')",
        "open('/proc/1/environ').read()",
        "open('weights.txt', 'a')",
        "open('new.txt', 'w')",
        "os.unlink('weights.txt')",
        "os.chmod('weights.txt', 0o777)",
        "os.utime('weights.txt')",
        "os.symlink('/etc/passwd', tempfile.gettempdir() + '/link'); open(tempfile.gettempdir() + '/link').read()",
        "open('/dev/shm/x', 'w')",
        "open('/var/tmp/x', 'w')",
        # processes
        "os.fork()",
        "subprocess.run([sys.executable, '-c', 'pass'])",
        "subprocess.run(['/bin/true'])",
        "os.execv(sys.executable, ['python'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.kill(os.getppid(), 0)",
        "os.kill(os.getppid(), signal.SIGTERM)",
        "os.kill(1, 0)",
        "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
        "os.sched_setaffinity(os.getppid(), {0})",
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (10, 10))",
        # raising its own limits
        "resource.setrlimit(resource.RLIMIT_CORE, (1, 1))",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 50, 1 << 50))",
        "os.setuid(1) if os.getuid() == 0 else os.setuid(0)",
    ],
)
def test_what_a_model_must_not_do_is_refused(prisoner: IsolatedModel, forbidden: str) -> None:
    outcome = _try(prisoner, forbidden)
    allowed_errors = ("PermissionError", "OSError: [Errno 22]", "ValueError: not allowed to raise", "KeyError")
    assert outcome.startswith(allowed_errors), outcome
    assert prisoner.alive


@pytest.mark.parametrize(
    ("call", "number_of"),
    [
        ("ptrace", {"x86_64": 101, "aarch64": 117}),
        ("unshare", {"x86_64": 272, "aarch64": 97}),
        ("mount", {"x86_64": 165, "aarch64": 40}),
        ("bpf", {"x86_64": 321, "aarch64": 280}),
        ("io_uring_setup", {"x86_64": 425, "aarch64": 425}),
        ("process_vm_readv", {"x86_64": 310, "aarch64": 270}),
        ("shmget", {"x86_64": 29, "aarch64": 194}),
        ("prctl(PR_SET_PDEATHSIG)", {"x86_64": 157, "aarch64": 167}),
    ],
)
def test_dangerous_system_calls_are_refused(prisoner: IsolatedModel, call: str, number_of: dict[str, int]) -> None:
    number = number_of[os.uname().machine]
    arguments = "1, 0, 0, 0, 0" if "PDEATHSIG" in call else "0, 0, 0, 0, 0"
    outcome = _try(prisoner, f"r = libc.syscall({number}, {arguments}); said = r, ctypes.get_errno()")
    assert outcome == "done: (-1, 1)", call  # EPERM


def test_there_is_no_network_interface_that_is_up(prisoner: IsolatedModel) -> None:
    report = prisoner.jail
    assert report is not None
    if "network namespace" not in report.network:
        pytest.skip(f"this machine gives no network namespace: {report.gaps}")
    outcome = _try(prisoner, "said = open('/proc/self/net/route').read().count(chr(10))")
    assert outcome in ("done: 1", "done: 0")


def test_it_has_no_capability_and_cannot_get_one(prisoner: IsolatedModel) -> None:
    status = _try(prisoner, "said = open('/proc/self/status').read()")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == 0
    assert int(fields["CapPrm"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"


def test_a_file_has_a_largest_size(prison: Path) -> None:
    model = load_isolated("python", prison, LoadOptions("prisoner"), jailed=True, tensor_bytes_max=1 << 20)
    try:
        outcome = _try(model, "f = tempfile.TemporaryFile(); f.truncate((1 << 20) + 1)")
        assert outcome.startswith("OSError: [Errno 27]")
    finally:
        model.unload()


def test_other_models_on_the_pod_cannot_be_read(prisoner: IsolatedModel, tmp_path: Path) -> None:
    secret = tmp_path / "neighbour.onnx"
    secret.write_text("weights")
    assert _try(prisoner, f"open({str(secret)!r}).read()").startswith("PermissionError")


def test_an_abstract_socket_of_the_machine_cannot_be_reached(prisoner: IsolatedModel) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(b"\0hexcomb-test-%d" % os.getpid())
        listening.listen()
        name = f"'\\0hexcomb-test-{os.getpid()}'"
        outcome = _try(prisoner, f"socket.socket(socket.AF_UNIX).connect({name})")
    assert outcome.startswith("PermissionError")


def test_without_walls_the_jail_fails_closed_and_says_why(prison: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child whose jail finds no Landlock (as on Linux before 5.13) refuses the model before it reads it."""
    broken = prison.parent / "no-landlock"
    broken.mkdir(exist_ok=True)
    (broken / "sitecustomize.py").write_text(
        "import runtime_adapters.jail_files as files\nfiles.landlock_version = lambda: 0\n"
    )
    import runtime_adapters.isolation_process as isolation_process

    ordinary = isolation_process.child_environment

    def environment(scratch: Path, threads: int) -> dict[str, str]:
        made = ordinary(scratch, threads)
        return {**made, "PYTHONPATH": f"{broken}{os.pathsep}{made['PYTHONPATH']}"}

    monkeypatch.setattr(isolation_process, "child_environment", environment)
    with pytest.raises(
        UntrustedArtifact, match=r"files could not be confined \(the kernel has no Landlock\)"
    ) as raised:
        load_isolated("python", prison, LoadOptions("prisoner"), jailed=True)
    assert "trusted" in str(raised.value)

    model = load_isolated("python", prison, LoadOptions("prisoner"), jailed=True, require_jail=False)
    try:
        assert model.jail is not None
        assert model.jail.files == ()
        assert model.jail.gaps == ("the kernel has no Landlock",)
        assert _try(model, "socket.socket()").startswith("PermissionError")
    finally:
        model.unload()


def test_a_pod_without_capabilities_builds_the_same_walls(prison: Path) -> None:
    script = f"""
import ctypes
libc = ctypes.CDLL(None)
for capability in range(64):
    libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: what an exec could give back
libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
from pathlib import Path
from runtime_adapters.base import LoadOptions
from runtime_adapters.isolation import load_isolated
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")])
model = load_isolated("python", Path({str(prison)!r}), LoadOptions("m"), jailed=True)
print(model.jail.confined, model.jail.files[0].split("-")[0], model.jail.processes, model.size().host_bytes > 0)
model.unload()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["['0000000000000000']", "True landlock ('seccomp',) True"], done.stderr


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_a_valid_program(machine: str) -> None:
    """Every jump lands inside, and every path ends in a verdict."""
    program = plan_filter(machine, 1234)
    assert program is not None
    for at, (code, if_true, if_false, _) in enumerate(program):
        if code & 0x07 == 0x05:
            assert at + 1 + max(if_true, if_false) < len(program)
    assert program[-1] == (0x06, 0, 0, 0x7FFF0000)
    assert len(program) < 4096


def test_an_unknown_machine_has_no_filter() -> None:
    assert plan_filter("riscv64", 1) is None
