"""Artifacts that came with a load request: kept in a directory of this pod, under the hash of their contents.

What is written once is never written to again, so equal uploads are one, and a registration that names one stays true.
Nothing is taken away while the pod runs: a registration may still name it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

FILES_MAX = 256
_PATH_CHARACTERS_MAX = 200


class BadUpload(ValueError):
    """Files that cannot be an artifact; the message says why."""


class Uploads:
    """One directory. Its methods block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keep(self, files: Mapping[str, bytes]) -> str:
        """The URI of an artifact of these files, by relative path: the file itself where there is one. Raises
        BadUpload."""
        relative = {_checked(path): content for path, content in files.items()}
        if not 0 < len(relative) <= FILES_MAX or len(relative) != len(files):
            raise BadUpload(f"{len(files)} files were sent; 1 to {FILES_MAX} with names that differ are allowed")
        digest = hashlib.sha256()
        for path in sorted(relative):
            digest.update(f"{path}\0{len(relative[path])}\0".encode())
            digest.update(relative[path])
        target = self._directory / digest.hexdigest()
        if not target.exists():
            self._write(target, relative)
        (only, *others) = relative
        return (target if others or len(only.parts) > 1 else target / only).absolute().as_uri()

    def _write(self, target: Path, files: Mapping[PurePosixPath, bytes]) -> None:
        made = self._directory / f".{target.name}-{os.getpid()}-{id(files)}"
        try:
            for path, content in files.items():
                file = made / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            made.replace(target)
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            if not target.exists():  # else somebody was quicker
                raise BadUpload(f"the files cannot be written: {error.strerror}") from error


def _checked(text: str) -> PurePosixPath:
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in text or len(text) > _PATH_CHARACTERS_MAX:
        raise BadUpload(f"{text[:80]!r} is no path within a model's directory")
    return path
