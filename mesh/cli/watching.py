"""`hexcomb models register NAME --uri DIR --watch`: a model that is registered anew whenever its directory changes.

For whoever writes a custom model, against a pod that sees the same directory. Each change is a new generation, which
takes the place of the old one once it is loaded: requests go on meanwhile, and a generation that cannot be loaded
leaves the old one serving. What has changed is told by names, sizes and times of the files, once they have been the
same for two looks; the label `revision` says which state is registered.

Deliberately absent: notifications of the file system (a directory that is mounted from elsewhere sends none), and
unregistering: the model stays when the watch ends.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOOK_S = 0.3
"""Between two looks."""
REVISION_LABEL = "revision"
FILES_MAX = 10_000
_LEFT_OUT = frozenset({"__pycache__", ".git"})
"""Directories that change without the model."""


class TooManyFiles(Exception):
    """A directory that is no model's."""


class Watch:
    """What was last seen of one directory, or file."""

    def __init__(self, artifact: Path) -> None:
        self._artifact = artifact
        self._seen = ""
        self._told = ""

    def changed(self) -> str | None:
        """One look: the revision to be registered now, if there is one. Raises TooManyFiles, OSError."""
        seen, self._seen = self._seen, revision_of(self._artifact)
        if self._seen != seen or self._seen == self._told:
            return None  # still being written, or as it was
        self._told = self._seen
        return self._told


def local_path(uri: str) -> Path:
    """Of a path, or a file:// URI."""
    return Path(unquote(urlsplit(uri).path) if uri.startswith("file://") else uri).absolute()


def revision_of(artifact: Path) -> str:
    """Names the state of a directory, or a file. Raises TooManyFiles; OSError where it is not there."""
    artifact.stat()
    digest = hashlib.sha256()
    for number, path in enumerate(sorted(_files(artifact))):
        if number >= FILES_MAX:
            raise TooManyFiles(f"{artifact} has more than {FILES_MAX:,} files; --watch is for a model's own directory")
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # gone since it was listed: the next look tells
        digest.update(f"{path.relative_to(artifact)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def watch(artifact: Path, register: Callable[[str], None], wait: Callable[[], bool]) -> None:
    """Register each revision, until `wait`, which is asked between two looks, says no. Raises what `register` does."""
    watched = Watch(artifact)
    while True:
        try:
            revision = watched.changed()
        except FileNotFoundError:
            revision = None  # an editor is replacing it
        if revision is not None:
            register(revision)
        if not wait():
            return


def _files(artifact: Path) -> Iterator[Path]:
    if artifact.is_file():
        yield artifact
        return
    for inside, directories, names in os.walk(artifact):
        directories[:] = [name for name in directories if name not in _LEFT_OUT]
        yield from (Path(inside) / name for name in names)
