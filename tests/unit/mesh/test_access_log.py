"""The access log: one line per answer, written beside the requests, bounded on disk and in memory."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from mesh import access_log
from mesh.access_log import COLUMNS, AccessLog, ColdStart
from mesh.threads import in_thread

T = TypeVar("T")


def answered(log: AccessLog, model: str, *, cold: bool = False) -> None:
    log.answered("default", model, 0.002, ColdStart(4096, load_s=0.25, fetch_s=0.125, wait_s=0.0015) if cold else None)


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


async def test_hits_name_the_model_and_misses_what_it_takes_as_well(tmp_path: Path) -> None:
    path = tmp_path / "new" / "access.csv"
    log = AccessLog(path, bytes_max=1 << 20, wall_clock=lambda: 1000.0)
    answered(log, "a", cold=True)
    answered(log, 'b,"quoted"')
    await log.close()
    first, second = lines(path)
    assert tuple(first) == COLUMNS
    assert first == {
        "time_s": "999.998",
        "tenant": "default",
        "model": "a",
        "outcome": "miss",
        "latency_ms": "2.000",
        "size_bytes": "4096",
        "load_s": "0.250000",
        "fetch_s": "0.125000",
        "wait_ms": "1.500",
    }
    assert (second["model"], second["outcome"], second["size_bytes"]) == ('b,"quoted"', "hit", "")


async def test_a_log_that_is_there_is_continued_and_has_one_header(tmp_path: Path) -> None:
    path = tmp_path / "access.csv"
    for model in ("a", "b"):
        log = AccessLog(path, bytes_max=1 << 20)
        answered(log, model)
        await log.close()
    assert [line["model"] for line in lines(path)] == ["a", "b"]


async def test_a_log_with_the_columns_of_an_earlier_version_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "access.csv"
    earlier = "time_s,tenant,model,outcome,latency_ms,size_bytes,load_s\n1.0,default,old,hit,1.0,,\n"
    path.write_text(earlier)
    log = AccessLog(path, bytes_max=1 << 20)
    answered(log, "new", cold=True)
    await log.close()
    assert [(line["model"], line["wait_ms"]) for line in lines(path)] == [("new", "1.500")]
    assert path.with_name("access.csv.1").read_text() == earlier


async def test_a_log_that_is_full_is_put_aside_once(tmp_path: Path) -> None:
    path = tmp_path / "access.csv"
    for number in range(4):
        log = AccessLog(path, bytes_max=60)
        answered(log, f"model-{number}")
        await log.close()
    assert names(tmp_path) == ["access.csv", "access.csv.1"]
    assert [line["model"] for line in lines(path)] == ["model-3"]


async def test_lines_that_come_while_others_are_written_do_not_wait_for_the_next_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_comes(name: str, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        if not written:
            answered(log, "second")
        written.append(name)
        return in_thread(name, work, *arguments)

    monkeypatch.setattr(access_log, "WRITTEN_EVERY_S", 0.001)
    written: list[str] = []
    log = AccessLog(tmp_path / "access.csv", bytes_max=1 << 20, in_thread=another_comes)
    answered(log, "first")
    assert log._writing is not None
    await log._writing
    await log.close()
    assert [line["model"] for line in lines(tmp_path / "access.csv")] == ["first", "second"]


async def test_lines_beyond_what_may_wait_are_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(access_log, "WAITING_MAX", 2)
    log = AccessLog(tmp_path / "access.csv", bytes_max=1 << 20)
    for number in range(5):
        answered(log, f"model-{number}")
    await log.close()
    assert len(lines(tmp_path / "access.csv")) == 2
    assert "3 lines were dropped" in caplog.text


def test_a_file_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        AccessLog(tmp_path / "file" / "access.csv", bytes_max=1 << 20)
