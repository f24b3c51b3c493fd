"""Equal files of different prepared forms, stored once: a directory of content, and hard links to it from the forms.

A form's files under `base.SHARED_FORM` are named by the hash of their bytes. Here such a file becomes one more link to
the file of that name in the disk tier's `shared/`, or, if there is none yet, the one that the next form links to. All
forms then hold the same inode: the bytes are on disk once, and all who map them map the same pages.

A hard link and not a symbolic one: what a form names stays until the form has left, whatever happens to the directory,
and frameworks that refuse files outside a model's directory find it inside.

The directory holds nothing that no form has. A pod that dies between two steps leaves a file too many there, which the
next start deletes, or one too few, which the next start links again from a form.

Where the file system has no hard links (or a file has as many as it may), a form keeps its own copy, counted as such.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from runtime_adapters.artifacts.ledger import file_blocks_bytes
from runtime_adapters.base import SHARED_FORM

log = logging.getLogger("hexcomb.artifacts")

Shared = tuple[tuple[str, int], ...]
"""Content that a form holds a link to, and the bytes that it takes on disk."""


class SharedFiles:
    """The directory. Its methods block, and are called by one caller at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._told = False

    def take_in(self, form: Path) -> Shared:
        """Replace the form's shareable files by links to equal ones, or let later forms link to them."""
        taken = []
        for file in _shareable(form):
            kept = self._directory / file.name
            try:
                try:
                    os.link(file, kept)
                except FileExistsError:
                    link = file.with_name(file.name + ".link")
                    os.link(kept, link)
                    os.replace(link, file)
            except OSError as error:
                if not self._told:
                    log.warning("equal weights are stored more than once: no hard links here (%s)", error.strerror)
                    self._told = True
                continue
            taken.append((file.name, file_blocks_bytes(file.stat().st_size)))
        return tuple(taken)

    def adopt(self, form: Path) -> Shared:
        """What a form that was here at the start shares."""
        adopted = []
        for file in _shareable(form):
            kept = self._directory / file.name
            found = file.stat()
            try:
                if not kept.exists():
                    os.link(file, kept)
                if os.path.samestat(kept.stat(), found):
                    adopted.append((file.name, file_blocks_bytes(found.st_size)))
            except OSError:
                continue  # a copy of its own
        return tuple(adopted)

    def names_in(self, form: Path) -> tuple[str, ...]:
        """What a form has that may have come to the directory with it."""
        return tuple(file.name for file in _shareable(form))

    def remove(self, names: tuple[str, ...]) -> None:
        """Content that no form holds any more."""
        for name in names:
            (self._directory / name).unlink(missing_ok=True)

    def names(self) -> tuple[str, ...]:
        """All content in the directory."""
        return tuple(sorted(os.listdir(self._directory)))


def _shareable(form: Path) -> list[Path]:
    directory = form / SHARED_FORM
    return sorted(directory.iterdir()) if directory.is_dir() else []
