"""Files of a Git repository at a branch, a tag or a commit: one commit is fetched, without its history.

The `git` program does it, in processes that see no configuration, no credential helper and no environment of the pod;
a login travels in its environment, where no list of processes shows it. It follows no redirect, since that would take
the login along, and speaks nothing but HTTP. Memory, the size of a file and of an answer are limited, for the server
is a stranger: a few kilobytes of trees that name one another list as billions of files.

A look fetches the commit into a directory of its own on the disk for artifacts, where the files are read from; it goes
with the source, or at the pod's next start.

Not taken: dulwich, which needs no program, but takes packs apart in this process, in memory, at whatever size the
server sends. Deliberately absent: submodules, links, and Git LFS, whose pointers are refused rather than served.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from runtime_adapters.artifacts.clients import Timeouts
from runtime_adapters.artifacts.download import disk_errors
from runtime_adapters.artifacts.errors import (
    ArtifactDenied,
    ArtifactNotFound,
    ArtifactTooLarge,
    FetchFailed,
)
from runtime_adapters.artifacts.ledger import disk_bytes
from runtime_adapters.artifacts.listing import Listing, RemoteObject, check_count
from runtime_adapters.artifacts.locations import Location
from runtime_adapters.artifacts.names import check_distinct, safe_parts, shown
from runtime_adapters.artifacts.storage_keys import GitKey, origin_of
from runtime_adapters.errors import BadArtifact

_CHUNK_BYTES = 1024 * 1024
_LOOK_UP_S = 0.2
"""How often it is asked whether git's answer is still wanted."""
_MEMORY_BYTES_MAX = 4 * 1024**3
"""Of one git process, addresses included that it maps and never touches."""
_BLOCK_BYTES = 512
"""What a shell counts file sizes in."""
_KEPT_VARIABLES = ("PATH", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""The operator's network; nothing else of the pod's environment."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_FILE_MODES = ("100644", "100755")
_ANSWER_BYTES_MAX = 16 * 1024 * 1024
"""Of a commit's list of files: more than 100,000 of them."""
_SAID_BYTES_MAX = 20_000
"""Of git's complaints, which are mixed with what the server says; the rest is read and dropped."""
_MARKS = (
    # git says these in its own words only; they are what tells one failure from another.
    ("Authentication failed", "denied"),
    ("could not read Username", "denied"),
    ("error: 403", "denied"),
    ("error: 401", "denied"),
    ("couldn't find remote ref", "missing"),
    ("not our ref", "missing"),
    ("not found", "missing"),
    ("error: 404", "missing"),
    ("unable to update url base from redirection", "moved"),
    ("error: 301", "moved"),
    ("error: 302", "moved"),
    ("died of signal 25", "large"),
    ("File too large", "large"),
    ("out of memory", "large"),
)


class GitSource:
    """A directory or a file of a repository."""

    def __init__(
        self,
        location: Location,
        key: GitKey | None,
        timeouts: Timeouts,
        files_max: int,
        bytes_max: int,
        check: Callable[[], None],
        staging: Path,
        lies_there: Callable[[int], None],
    ) -> None:
        """`check` raises when nobody waits for the artifact any more, or not for so long: git is stopped then. The
        commit lies in `staging`; `lies_there` hears how many bytes it has while it grows, and raises where the disk for
        artifacts has no room for them."""
        self._lies_there = lies_there
        self._location = location
        self._where = f"uri {location.shown!r}"
        self._check = check
        self._files_max = files_max
        self._bytes_max = bytes_max
        self._remote = f"{location.scheme.removeprefix('git+')}://{location.authority}/{location.path}"
        if key is not None and origin_of(self._remote) != key.origin:
            raise ArtifactDenied(f"{self._where}: the storage key's login is for {key.origin} only")
        if shutil.which("git") is None:
            raise BadArtifact(
                f"{self._where}: there is no git on this pod; install it (`apt-get install git`), or put the artifact "
                "into a bucket or on a web server"
            )
        with disk_errors():
            self._directory = Path(tempfile.mkdtemp(prefix="git-", dir=staging))
        weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        self._environment = _environment(key, timeouts, self._directory)
        self._counted_bytes = 0
        self._count_again_s = 0.0

    def look(self, known: RemoteObject | None = None) -> Listing:
        revision = self._location.revision or "HEAD"
        self._run("init", "--quiet", "--bare", str(self._directory))
        fetch = ("fetch", "--quiet", "--depth=1", "--no-tags", "--no-auto-gc", "--no-recurse-submodules")
        self._run(*fetch, self._remote, revision)
        self._count()
        commit = self._run("rev-parse", "FETCH_HEAD^{commit}").decode().strip()
        if not _COMMIT.fullmatch(commit):
            raise BadArtifact(f"{self._where}: {revision!r} is no commit; name a branch, a tag or a commit")
        inner = self._location.inner
        listed = self._run("ls-tree", "-r", "-l", "-z", "--full-tree", commit)
        lines = [line for line in listed.decode("utf-8", "surrogateescape").split("\0") if line]
        named = [(line.partition("\t")[2], line) for line in lines]
        if single := [line for name, line in named if name == inner]:
            return Listing((replace(self._object(single[0]), name=""),), is_directory=False)
        prefix = f"{inner}/" if inner else ""
        chosen = [(name[len(prefix) :], line) for name, line in named if name.startswith(prefix)]
        if not chosen:
            raise ArtifactNotFound(f"{self._where}: the repository has no such file or directory; check the path")
        check_count(len(chosen), self._files_max, self._location)
        objects = [replace(self._object(line), name=name) for name, line in chosen]
        check_distinct([safe_parts(item.name) for item in objects])
        return Listing(tuple(sorted(objects, key=lambda item: item.name)), is_directory=True)

    def read(self, item: RemoteObject, offset: int = 0) -> Iterator[bytes]:
        process = self._start("cat-file", "blob", item.key)
        assert process.stdout is not None
        try:
            left = offset
            first = True
            while chunk := process.stdout.read(_CHUNK_BYTES):
                if first and chunk.startswith(_LFS_POINTER):
                    raise BadArtifact(
                        f"{self._where}: {shown(item.name)} is a pointer of Git LFS, and the file itself is not in the "
                        "repository; put it into a bucket, or name the model on its hub with hf://"
                    )
                first = False
                yield chunk[left:]
                left = max(0, left - len(chunk))
            if process.wait():
                raise FetchFailed(f"{self._where}: git could not read {shown(item.name)}; it is fetched again")
        finally:
            _end(process)

    def _object(self, line: str) -> RemoteObject:
        """From a line of `git ls-tree -l`: mode, type, blob, size, name."""
        described, _, name = line.partition("\t")
        mode, kind, blob, size = described.split()
        if mode not in _FILE_MODES:
            what = "a submodule" if kind == "commit" else "a link"
            raise BadArtifact(f"{self._where}: {shown(name)} is {what}; commit plain files")
        safe_parts(name)
        return RemoteObject(name, blob, int(size), f"blob:{blob}", settled=True, etag=blob)

    def _run(self, *arguments: str) -> bytes:
        process = self._start(*arguments)
        try:
            output, said = self._hear(process)
        finally:
            _end(process)
        if process.returncode:
            self._raise(said.decode(errors="replace"))
        return output

    def _hear(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
        """What it answers and what it complains of, when it has ended. Raises ArtifactTooLarge."""
        assert process.stdout is not None
        assert process.stderr is not None
        output, said = bytearray(), bytearray()
        with selectors.DefaultSelector() as streams:
            streams.register(process.stdout, selectors.EVENT_READ, output)
            streams.register(process.stderr, selectors.EVENT_READ, said)
            while streams.get_map():
                self._look_up()
                for ready, _ in streams.select(_LOOK_UP_S):
                    part = os.read(ready.fd, _CHUNK_BYTES)
                    ready.data.extend(part)
                    if not part:
                        streams.unregister(ready.fileobj)
                del said[_SAID_BYTES_MAX:]
                if len(output) > _ANSWER_BYTES_MAX:
                    raise ArtifactTooLarge(
                        f"{self._where}: the list of the repository's files is longer than {_ANSWER_BYTES_MAX} bytes; "
                        "put the artifact into a repository of its own, or into a bucket"
                    )
        while process.poll() is None:
            self._look_up()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_UP_S)
        return bytes(output), bytes(said)

    def _look_up(self) -> None:
        """Whether it is still wanted, and has room. Raises what stands against it."""
        self._check()
        now_s = time.monotonic()
        if now_s >= self._count_again_s:
            self._count_again_s = now_s + _LOOK_UP_S
            self._count()

    def _count(self) -> None:
        counted_bytes = disk_bytes(list(_sizes_below(self._directory)))
        if counted_bytes > self._counted_bytes:
            self._counted_bytes = counted_bytes
            self._lies_there(counted_bytes)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        # The shell's limits hold before git starts its helpers.
        limits = f"ulimit -v {_MEMORY_BYTES_MAX // 1024}; ulimit -f {self._bytes_max // _BLOCK_BYTES + 1}"
        return subprocess.Popen(
            ["sh", "-c", f'{limits}; exec git "$@"', "git", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._directory,
            env=self._environment,
            start_new_session=True,
        )

    def _raise(self, said: str) -> NoReturn:
        reason = next((reason for mark, reason in _MARKS if mark in said), "")
        match reason:
            case "denied":
                raise ArtifactDenied(
                    f"{self._where}: the server denies access; a private repository needs a storage key of type git"
                )
            case "missing":
                raise ArtifactNotFound(f"{self._where}: no such repository or revision; check the uri")
            case "moved":
                raise BadArtifact(
                    f"{self._where}: the repository has moved, and no redirect is followed; write its new URL"
                )
            case "large":
                raise ArtifactTooLarge(
                    f"{self._where}: the commit is larger than {self._bytes_max} bytes or this pod's memory for git; "
                    "raise --fetch-size-max, or put the artifact into a bucket"
                )
            case _:
                raise FetchFailed(f"{self._where}: git could not fetch it; it is tried again later")


def _environment(key: GitKey | None, timeouts: Timeouts, directory: Path) -> dict[str, str]:
    settings = [
        ("http.followRedirects", "false"),
        ("http.lowSpeedLimit", "1"),
        ("http.lowSpeedTime", str(max(1, round(timeouts.stall_s)))),
        ("credential.helper", ""),
        ("core.hooksPath", os.devnull),
        ("transfer.fsckObjects", "true"),
        ("pack.threads", "1"),
    ]
    if key is not None and key.password:
        # Without a name, a token stands for it: GitHub, GitLab and Bitbucket take any.
        login = base64.b64encode(f"{key.username or 'git'}:{key.password}".encode()).decode()
        settings.append(("http.extraHeader", f"Authorization: Basic {login}"))
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    environment |= {
        "HOME": str(directory),
        "GIT_DIR": str(directory),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "GIT_ALLOW_PROTOCOL": "http:https",
        "LC_ALL": "C",
        "GIT_CONFIG_COUNT": str(len(settings)),
    }
    for number, (name, value) in enumerate(settings):
        environment |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return environment


def _sizes_below(directory: Path) -> Iterator[int]:
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # git renames what it has written
                yield os.lstat(os.path.join(parent, name)).st_size


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop it and its helpers, if they still run, and close what came of it."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
