"""A package of Debian's, downloaded and unpacked without being installed, so that no root is needed.

apt runs with lists and locks of its own where the machine's are absent or stale, since only root may renew those.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

FETCH_TIMEOUT_S = 300.0


def has_debian_tools() -> bool:
    """Whether this machine can do it."""
    return bool(shutil.which("apt-get") and shutil.which("dpkg-deb"))


def unpack_package(package: str, scratch: Path) -> Path:
    """The directory below the empty directory `scratch` that has the package's files, as below `/`.

    Raises SubprocessError, OSError, ValueError.
    """
    _download(package, scratch)
    (file,) = scratch.glob(f"{package}_*.deb")
    _run(["dpkg-deb", "-x", str(file), str(scratch / "root")], scratch)
    return scratch / "root"


def _download(package: str, scratch: Path) -> None:
    try:
        _run(["apt-get", "-q", "download", package], scratch)
    except subprocess.CalledProcessError:
        (scratch / "lists/partial").mkdir(parents=True)
        own_lists = ["-o", f"Dir::State::Lists={scratch / 'lists'}", "-o", f"Dir::Cache={scratch}"]
        unlocked = ["-o", "Debug::NoLocking=1", "-o", f"APT::Sandbox::User={_user()}"]
        _run(["apt-get", "-q", *own_lists, *unlocked, "update"], scratch)
        _run(["apt-get", "-q", *own_lists, *unlocked, "download", package], scratch)


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _run(command: list[str], directory: Path) -> None:
    subprocess.run(
        command,
        cwd=directory,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=FETCH_TIMEOUT_S,
    )
