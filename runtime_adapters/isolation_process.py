"""The process of one isolated copy: started, watched, ended; nothing of it left behind.

Every child is started from one thread that lives as long as the pod: Linux ends a child with its parent *thread*
(PR_SET_PDEATHSIG), and the threads that ask for loads come and go. So a pod that dies, however it dies, takes its
children along even if their code never looks up.

One watcher thread per child reads what it prints (into the pod's log, bounded in length and rate), notices its end,
kills what it started (it leads its own process group), collects its exit status, and removes its scratch directory.
The group is killed before the status is collected, while its number cannot have been given to another process.

Scratch directories lie in one directory per pod, locked while the pod lives. A pod that was killed cannot remove its
own; the next one on this machine finds it unlocked and does.

The environment is written anew: a model sees no credential, token or proxy of the pod.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime_adapters.framework_threads import THREAD_VARIABLES

_log = logging.getLogger(__name__)

_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="isolated-starter")

_KEPT_VARIABLES = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
)

_SCRATCH_PREFIX = "hexcomb-isolated-"

_OUTPUT_READ_BYTES = 1 << 16
_LINE_CHARS_MAX = 1_000
_LINES_PER_WINDOW_MAX = 200
_WINDOW_S = 10.0


class ChildProcess:
    """A started child. `kill` may be called from any thread, at any time, more than once."""

    def __init__(self, model_id: str, process: subprocess.Popen[bytes], scratch: Path) -> None:
        self.model_id = model_id
        self.pid = process.pid
        self.scratch = scratch
        self._process = process
        self._guard = threading.Lock()
        self._killed_because: str | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name=f"isolated-{process.pid}", daemon=True).start()

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    def kill(self, because: str) -> None:
        """End it and what it started. `because` follows "was stopped: " in errors."""
        with self._guard:
            if self._process.returncode is None:
                self._killed_because = self._killed_because or because
                _kill_group(self.pid)

    def wait_ended(self, timeout_s: float) -> bool:
        """Whether it has ended and nothing of it is left."""
        return self._ended.wait(timeout_s)

    @property
    def ended_by_itself(self) -> bool:
        """Whether it has ended without having been stopped: it crashed, it left, or the system killed it."""
        return self._process.returncode is not None and self._killed_because is None

    def how_it_ended(self) -> str:
        """`was killed by signal 11 (SIGSEGV)`, to follow "the process of model x"."""
        status = self._process.returncode
        if status is None:
            return "has closed its channel but not ended"
        if self._killed_because is not None:
            return f"was stopped: {self._killed_because}"
        if status >= 0:
            return f"exited with status {status}"
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = "unknown"
        hint = "; often the kernel's out-of-memory killer" if -status == signal.SIGKILL else ""
        return f"was killed by signal {-status} ({name}{hint})"

    def _watch(self) -> None:
        output = self._process.stdout
        assert output is not None
        lines = _LogLines(self.model_id)
        exit_fd = os.pidfd_open(self.pid)
        try:
            os.set_blocking(output.fileno(), False)
            poll = select.poll()
            poll.register(exit_fd, select.POLLIN)
            poll.register(output.fileno(), select.POLLIN)
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if output.fileno() in ready and not _forward(output.fileno(), lines):
                    poll.unregister(output.fileno())
                if exit_fd in ready:
                    break
            with self._guard:
                _kill_group(self.pid)
                self._process.wait()
            _forward(output.fileno(), lines)
            lines.end()
        finally:
            os.close(exit_fd)
            output.close()
            shutil.rmtree(self.scratch, ignore_errors=True)
            self._ended.set()


def start_child(model_id: str, threads: int, arguments: Sequence[str], inherited_fds: Sequence[int]) -> ChildProcess:
    """Start the worker. `arguments` follow its module name. Raises OSError."""
    return _STARTER.submit(_start, model_id, threads, tuple(arguments), tuple(inherited_fds)).result()


def _start(model_id: str, threads: int, arguments: tuple[str, ...], inherited_fds: tuple[int, ...]) -> ChildProcess:
    scratch = Path(tempfile.mkdtemp(prefix="copy-", dir=scratch_root(tempfile.gettempdir())))
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", "runtime_adapters.isolation_worker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=scratch,
            env=child_environment(scratch, threads),
            pass_fds=inherited_fds,
            start_new_session=True,
        )
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return ChildProcess(model_id, process, scratch)


@functools.cache
def scratch_root(temporary: str) -> Path:
    """This pod's own directory below `temporary`; what dead pods have left there is removed on the way."""
    for left in Path(temporary).glob(f"{_SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)
    while True:
        root = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=temporary))
        try:
            lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another pod took it for a dead one's, before it was locked
        fcntl.flock(lock, fcntl.LOCK_EX)
        if root.exists():
            atexit.register(shutil.rmtree, root, ignore_errors=True)
            return root
        os.close(lock)


def child_environment(scratch: Path, threads: int) -> dict[str, str]:
    """What a process sees that runs a stranger's code: where libraries are, and nothing of this one's."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {
        **kept,
        **{name: str(threads) for name in THREAD_VARIABLES},
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "PYTHONUNBUFFERED": "1",
        "PYTHONNOUSERSITE": "1",
    }


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


class _LogLines:
    """What a child prints, as lines of the pod's log: bounded in length and rate."""

    def __init__(self, model_id: str) -> None:
        self._model_id = model_id
        self._rest = b""
        self._window_began_s = 0.0
        self._in_window = 0

    def add(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._write(line)
        if len(self._rest) > _LINE_CHARS_MAX:
            self._write(self._rest)
            self._rest = b""

    def end(self) -> None:
        if self._rest:
            self._write(self._rest)
            self._rest = b""

    def _write(self, line: bytes) -> None:
        now_s = time.monotonic()
        if now_s - self._window_began_s > _WINDOW_S:
            self._window_began_s, self._in_window = now_s, 0
        self._in_window += 1
        if self._in_window <= _LINES_PER_WINDOW_MAX:
            text = line[:_LINE_CHARS_MAX].decode(errors="replace")
            _log.info("model %s printed: %s", self._model_id, text)
        elif self._in_window == _LINES_PER_WINDOW_MAX + 1:
            _log.warning("model %s prints too much; the rest of these %.0f s is dropped", self._model_id, _WINDOW_S)


def _forward(fd: int, lines: _LogLines) -> bool:
    """Move what is there into the log; False at the end of the output."""
    while True:
        try:
            piece = os.read(fd, _OUTPUT_READ_BYTES)
        except BlockingIOError:
            return True
        if not piece:
            return False
        lines.add(piece)
        if len(piece) < _OUTPUT_READ_BYTES:
            return True
