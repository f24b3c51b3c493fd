"""What was heard of a file is used only where it was the whole file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh import reading_ahead
from mesh.reading_ahead import ReadingAhead
from runtime_adapters.artifacts.fetch import Artifact
from runtime_adapters.base import LoadOptions, Size


class Heard:
    """Remembers what came."""

    def __init__(self) -> None:
        self.content = b""

    def take(self, piece: bytes) -> None:
        self.content += piece

    def prepare(self, into: Path, options: LoadOptions) -> bool:
        raise NotImplementedError

    def size(self) -> Size:
        raise NotImplementedError


def artifact(size_bytes: int, fetched_bytes: int | None = None, form: str = "") -> Artifact:
    fetched_bytes = size_bytes if fetched_bytes is None else fetched_bytes
    return Artifact(Path("m"), "sha256-0", size_bytes, fetched_bytes, 0.0, trusted=False, lease=1, form=form)


def heard(*pieces: tuple[int, bytes]) -> ReadingAhead:
    ahead = ReadingAhead(Heard())
    for offset, piece in pieces:
        ahead.hear(offset, piece)
    return ahead


def test_a_file_that_came_in_order_was_read() -> None:
    reading = heard((0, b"one "), (4, b"two")).all_of(artifact(7))
    assert isinstance(reading, Heard)
    assert reading.content == b"one two"


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        ([], artifact(7)),
        ([(0, b"one ")], artifact(7)),
        ([(0, b"one "), (4, b"two")], artifact(8)),
        ([(4, b"two")], artifact(3)),
        ([(0, b"one "), (0, b"one "), (4, b"two")], artifact(7)),
        ([(0, b"one "), (6, b"two")], artifact(9)),
        ([(0, b"one two")], artifact(7, fetched_bytes=0)),
        ([(0, b"one two")], artifact(7, form="lightgbm-4")),
    ],
)
def test_else_it_is_read_as_ever(pieces: list[tuple[int, bytes]], found: Artifact) -> None:
    assert heard(*pieces).all_of(found) is None


def test_a_large_file_is_left_to_whoever_asks_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_ahead, "READ_AHEAD_BYTES_MAX", 6)
    assert heard((0, b"one "), (4, b"two")).all_of(artifact(7)) is None


def test_an_adapter_that_fails_on_a_piece_does_not_fail_the_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(heard: Heard, piece: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr(Heard, "take", no_memory)
    assert heard((0, b"one "), (4, b"two")).all_of(artifact(7)) is None
