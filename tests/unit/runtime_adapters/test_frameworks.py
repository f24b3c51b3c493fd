"""Modules are imported by one thread at a time: Python's own locks give way where two threads meet in a circle.

That two imports overlap is made certain here, not the harm that it does: which of two threads gives way, and what it
then sees of the other's module, is a matter of microseconds.
"""

from __future__ import annotations

import gc
import importlib
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime_adapters.base import LoadOptions
from runtime_adapters.frameworks import importing
from runtime_adapters.registry import adapter_for

_MEETING = """
import threading

_both = threading.Barrier(2)


def wait():
    try:
        _both.wait(0.5)
        return True
    except threading.BrokenBarrierError:
        return False
"""
_SIDE = """
import {package}.meeting

met = {package}.meeting.wait()


class Estimator:
    n_features_in_ = 1

    def predict(self, rows):
        return rows[:, 0]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of two modules, `left` and `right`, each of which says whether the other was imported at the same time."""
    name = f"sides_of_{tmp_path.name}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "meeting.py").write_text(_MEETING)
    for side in ("left", "right"):
        (tmp_path / name / f"{side}.py").write_text(_SIDE.format(package=name))
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def _at_once(*calls: Callable[[], object]) -> None:
    with ThreadPoolExecutor(len(calls)) as pool:
        for running in [pool.submit(call) for call in calls]:
            running.result(timeout=60)


def _met(package: str) -> set[bool]:
    return {sys.modules[f"{package}.{side}"].met for side in ("left", "right")}


def test_two_threads_do_not_import_at_the_same_time(package: str) -> None:
    def import_side(name: str) -> None:
        with importing(name):
            importlib.import_module(name)

    _at_once(lambda: import_side(f"{package}.left"), lambda: import_side(f"{package}.right"))
    assert _met(package) == {False}


def test_two_pickles_do_not_import_what_they_name_at_the_same_time(package: str, tmp_path: Path) -> None:
    adapter = adapter_for("pickle")
    adapter.runtime_version()  # scikit-learn itself is there
    files = []
    for side in ("left", "right"):
        estimator = importlib.import_module(f"{package}.{side}").Estimator()
        files.append(tmp_path / f"{side}.pkl")
        files[-1].write_bytes(pickle.dumps(estimator))
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]
    options = LoadOptions("m", trusted=True)
    _at_once(*(lambda file=file: adapter.load(file, options) for file in files))
    assert _met(package) == {False}


def test_what_is_imported_already_waits_for_no_other_import() -> None:
    begun, done = threading.Event(), threading.Event()

    def import_slowly() -> None:
        with importing("a_module_that_is_not_there_yet"):
            begun.set()
            assert done.wait(30)

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(import_slowly)
        assert begun.wait(30)
        with importing("json", "pickle"):
            done.set()
        slow.result(timeout=30)


def test_what_an_import_brought_is_no_work_for_the_garbage_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brought.py").write_text("things = [[] for _ in range(1000)]")
    monkeypatch.syspath_prepend(tmp_path)
    gc.unfreeze()
    try:
        with importing("brought"):
            brought = importlib.import_module("brought")
        assert gc.get_freeze_count() >= 1000
        frozen = gc.get_freeze_count()
        more = [[] for _ in range(1000)]
        with importing("brought"):
            importlib.import_module("brought")
        assert gc.get_freeze_count() <= frozen, "again for nothing"
        assert len(more) == len(brought.things)
    finally:
        gc.unfreeze()
        sys.modules.pop("brought", None)
