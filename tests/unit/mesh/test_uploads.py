"""Artifacts that came with a load request."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import pytest

from mesh.uploads import FILES_MAX, BadUpload, Uploads


def path_of(uri: str) -> Path:
    return Path(urlparse(uri).path)


def test_one_file_is_an_artifact_and_several_are_a_directory(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    assert path_of(uploads.keep({"model.onnx": b"m"})).read_bytes() == b"m"
    directory = path_of(uploads.keep({"model.onnx": b"m", "data/weights": b"w"}))
    assert (directory / "data" / "weights").read_bytes() == b"w"


def test_equal_files_are_kept_once(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    assert uploads.keep({"a": b"1", "b": b"2"}) == uploads.keep({"b": b"2", "a": b"1"})
    assert uploads.keep({"a": b"1", "b": b"3"}) != uploads.keep({"a": b"1", "b": b"2"})
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("path", ["", ".", "/etc/passwd", "../x", "a/../../x", "a\0b", "a" * 300])
def test_files_stay_within_their_directory(tmp_path: Path, path: str) -> None:
    with pytest.raises(BadUpload, match="no path within"):
        Uploads(tmp_path).keep({path: b"x"})


def test_there_is_a_limit_to_files(tmp_path: Path) -> None:
    for count in (0, FILES_MAX + 1):
        with pytest.raises(BadUpload, match=f"{count} files"):
            Uploads(tmp_path).keep({f"f{number}": b"" for number in range(count)})
