"""`--watch`: when a change is registered, and when it is not yet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.cli import watching
from mesh.cli.watching import TooManyFiles, Watch, local_path, revision_of, watch


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    (directory / "__pycache__").mkdir(parents=True)
    (directory / "model.py").write_text("1")
    return directory


def changed_at(path: Path, text: str, time_ns: int) -> None:
    path.write_text(text)
    os.utime(path, ns=(time_ns, time_ns))


def test_a_change_is_told_once_when_it_has_come_to_rest(model: Path) -> None:
    watched = Watch(model)
    assert watched.changed() is None
    first = watched.changed()
    assert first is not None
    assert watched.changed() is None
    changed_at(model / "model.py", "2", 10)
    assert watched.changed() is None
    changed_at(model / "model.py", "3", 20)
    assert watched.changed() is None
    second = watched.changed()
    assert second not in (None, first)
    (model / "__pycache__" / "model.pyc").write_text("compiled")
    assert [watched.changed(), watched.changed()] == [None, None]


def test_new_files_and_files_that_went_are_changes(model: Path) -> None:
    before = revision_of(model)
    (model / "weights").write_text("")
    more = revision_of(model)
    (model / "weights").unlink()
    assert (more != before, revision_of(model) == before) == (True, True)
    assert revision_of(model / "model.py")


def test_an_artifact_that_is_being_replaced_is_waited_for(model: Path, tmp_path: Path) -> None:
    registered: list[str] = []
    away = tmp_path / "away"

    def looks() -> Iterator[bool]:
        for there, then in ((model, model), (model, away), (away, model)):
            there.rename(then)
            yield True
        yield True
        yield False

    turns = looks()
    watch(model, registered.append, lambda: next(turns))
    assert registered == [revision_of(model)]


def test_a_directory_that_is_no_models_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "FILES_MAX", 0)
    with pytest.raises(TooManyFiles, match="a model's own directory"):
        revision_of(model)


def test_a_uri_is_the_path_that_it_was_made_of(tmp_path: Path) -> None:
    path = tmp_path / "my model #1 50%"
    assert local_path(path.as_uri()) == local_path(str(path)) == path
