"""Files that are held in RAM."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime_adapters.mapped_files import MappedFiles


def test_all_of_the_files_is_held_and_locked_where_that_is_allowed(tmp_path: Path) -> None:
    sizes = (10_000, 0, 3)
    paths = [tmp_path / str(size) for size in sizes]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(b"w" * size)
    asked: list[int] = []

    def lock(address: int, size_bytes: int) -> bool:
        asked.append(size_bytes)
        return size_bytes > 3

    files = MappedFiles(paths, lock)
    assert (files.size_bytes, files.is_locked, asked) == (10_003, False, [10_000, 3])
    assert MappedFiles(paths[:1], lock).is_locked
    files.close()
    files.close()


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MappedFiles([tmp_path / "gone"])
