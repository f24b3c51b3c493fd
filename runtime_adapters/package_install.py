"""Installing what a custom model asks for into a directory of its own, by pip.

The directory stands in front of the pod's own packages on the model's path. It holds everything that was asked for and
what that needs in turn, the pod's own packages not counted: what a model runs with then depends on its file and on
nothing else that the pod has. So a model may have another NumPy than the pod, of its own.

Only wheels are taken: to install one runs none of its code, while a source distribution would run its set-up on the pod
with all that the pod may do. pip sees none of the pod's environment and no configuration, so it asks nobody but
whom the operator named. One thing gets past both, and pip (26.3) has no option against it: a wheel whose own metadata
need another package by URL (`name @ https://...`) has that fetched from there, and built if it is no wheel. PyPI takes
no such wheels; what lies in an index or a directory of one's own is to be as trusted as the models are.

Not taken: uv, which is faster where it is installed and one more program that every image would need; and a virtual
environment for each, whose interpreter would not see the pod's own packages (this one may run in one itself).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from runtime_adapters.artifacts.disk_directory import files_below
from runtime_adapters.artifacts.download import FetchStopped, Stop
from runtime_adapters.artifacts.errors import ArtifactTooLarge, DiskFull, FetchFailed, FetchTimedOut
from runtime_adapters.errors import BadArtifact, MissingRuntime
from runtime_adapters.requirements import Requirements

SITE = "site-packages"
"""The directory in what was installed that goes onto the path."""
_LOOK_S = 0.2
"""Between two looks at whether somebody still waits."""
_MEASURE_S = 1.0
"""Between two looks at how much has come."""
_LOG_CHARS_MAX = 1_000
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
_PASSING = (
    "Retrying (",
    "Connection broken",
    "ConnectionError",
    "ReadTimeout",
    "ProxyError",
    "Could not fetch URL",
    "HTTP error 5",
    "HTTP error 429",
    "500 Server Error",
    "502 Server Error",
    "503 Server Error",
    "504 Server Error",
    "IncompleteRead",
)
"""What pip prints where the network, or the index, fails for now: it is looked for first, since no version is found
then either."""
_FOR_GOOD = (
    "No matching distribution found",
    "ResolutionImpossible",
    "DO NOT MATCH THE HASHES",
    "--require-hashes",
    "requires a different Python",
    "is not a supported wheel",
    "has an invalid wheel",
    "401 Error",
    "403 Client Error",
)


@dataclass(frozen=True, slots=True)
class PackageSources:
    """Where packages come from, and how much of them: the operator's word."""

    index_url: str | None = None
    """An index, as PyPI is one; None: none is asked."""
    links: tuple[str, ...] = ()
    """Directories, or pages, with wheels."""
    bytes_max: int = 1 << 30

    @property
    def any(self) -> bool:
        """Whether packages are installed at all."""
        return self.index_url is not None or bool(self.links)


def install_key(requirements: Requirements, sources: PackageSources) -> str:
    """Equal ones give the same directory: what is asked for, from where, for which Python on what machine."""
    index = _without_password(sources.index_url or "")
    python = f"{platform.python_implementation()}-{platform.python_version()}-{sysconfig.get_platform()}"
    return requirements.digest(index, *sources.links, python)


def install(requirements: Requirements, sources: PackageSources, into: Path, stop: Stop) -> None:
    """Fill the empty directory `into`. Blocks; ends early when nobody waits any more.

    Raises BadArtifact (for good: no such version, versions that exclude one another, hashes that differ, too many
    bytes), FetchFailed (for now: the network, the index, the time), DiskFull, MissingRuntime.
    """
    if importlib.util.find_spec("pip") is None:
        raise MissingRuntime(
            "packages of custom models are installed by pip, which this pod lacks: python -m ensurepip"
        )
    asked, temporary = into / "requirements.txt", into / "tmp"
    asked.write_text(requirements.text)
    temporary.mkdir()
    command = [sys.executable, "-I", "-m", "pip", "install", "--target", str(into / SITE), "--requirement", str(asked)]
    with (temporary / "log").open("w+b") as log:
        process = subprocess.Popen(
            [*command, "--only-binary=:all:", "--no-cache-dir", "--no-input", "--progress-bar=off", "--no-color"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=temporary,
            env=_environment(sources, temporary),
            start_new_session=True,
        )
        try:
            _wait(process, into, sources.bytes_max, stop)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        printed = log.read().decode(errors="replace")
    if process.returncode != 0:
        raise _failure(printed, process.returncode)
    shutil.rmtree(temporary)
    _check_size(into, sources.bytes_max)


def _wait(process: subprocess.Popen[bytes], into: Path, bytes_max: int, stop: Stop) -> None:
    measure_at_s = time.monotonic() + _MEASURE_S
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_S)
            return
        if stop.wanted.is_set():
            raise FetchStopped("installing packages was stopped: nobody waits for it any more")
        if stop.remaining_s <= 0:
            raise FetchTimedOut("its packages were not installed in time; raise fetch_timeout_s, or ask for fewer")
        if time.monotonic() >= measure_at_s:
            _check_size(into, bytes_max)
            measure_at_s = time.monotonic() + _MEASURE_S


def _check_size(into: Path, bytes_max: int) -> None:
    size_bytes = 0
    for path in files_below(into):
        with contextlib.suppress(FileNotFoundError):  # pip moves and deletes meanwhile
            size_bytes += path.lstat().st_size
    if size_bytes > bytes_max:
        raise ArtifactTooLarge(
            f"its packages take more than {bytes_max:,} bytes, the limit of this pod (packages_size_max); ask for fewer"
        )


def _environment(sources: PackageSources, temporary: Path) -> dict[str, str]:
    """In the environment and not on the command line, which other processes can read: the index's URL may hold a
    password."""
    kept = {name: os.environ[name] for name in (*_KEPT_VARIABLES, *_CERTIFICATES) if name in os.environ}
    index = {"PIP_NO_INDEX": "1"} if sources.index_url is None else {"PIP_INDEX_URL": sources.index_url}
    links = {"PIP_FIND_LINKS": " ".join(map(_as_url, sources.links))} if sources.links else {}
    return {
        **kept,
        **index,
        **links,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_RETRIES": "2",
        "PIP_TIMEOUT": "15",
        "HOME": str(temporary),
        "TMPDIR": str(temporary),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _as_url(link: str) -> str:
    """Of a directory, whatever is in its name: pip takes a list apart at its spaces."""
    return link if "://" in link else Path(link).absolute().as_uri()


def _failure(printed: str, status: int) -> Exception:
    """What went wrong, with the end of what pip printed, which may name the index, links and proxies as they are."""
    printed = _without_password(printed)
    tail = " | ".join(line.strip() for line in printed.splitlines() if line.strip())[-_LOG_CHARS_MAX:]
    if "No space left on device" in printed:
        return DiskFull(f"its packages could not be installed, the disk is full: {tail}")
    if not any(mark in printed for mark in _PASSING) and any(mark in printed for mark in _FOR_GOOD):
        return BadArtifact(f"its packages cannot be installed: {tail}")
    return FetchFailed(f"its packages were not installed (pip ended with status {status}): {tail}")


def _without_password(text: str) -> str:
    """Of every URL in it."""
    return re.sub(r"//[^/\s]+@", "//****@", text)
