"""What ran when the process died is known to the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cache.types import ModelKey
from mesh.flight_recorder import FILE_NAME, HEADER_BYTES, FlightRecorder, read_last_flight

A, B = ModelKey("t", "a", 2), ModelKey("t", "b/ü", 1)

_DIES = """
import os, signal, sys
from pathlib import Path
from cache.types import ModelKey
from mesh.flight_recorder import FlightRecorder
recorder = FlightRecorder(Path(sys.argv[1]), "p1", "one")
a, b = recorder.take(ModelKey("t", "a", 2)), recorder.take(ModelKey("t", "b/ü", 1))
recorder.bytes[a] = 1
recorder.bytes[b] = 1
recorder.bytes[a] = 0
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_in_use_at_a_kill_is_read_by_the_next_process(tmp_path: Path) -> None:
    died = subprocess.run([sys.executable, "-c", _DIES, str(tmp_path)], env=os.environ, check=False)
    assert died.returncode == -signal.SIGKILL
    last = read_last_flight(tmp_path)
    assert last is not None
    assert (last.pod, last.incarnation, last.in_use) == ("p1", "one", (B,))


def test_a_clean_end_leaves_nothing_to_tell(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path, "p1", "one")
    recorder.bytes[recorder.take(A)] = 1
    recorder.close()
    assert read_last_flight(tmp_path) is None


def test_what_ran_is_known_until_it_was_told_however_many_starts_fail(tmp_path: Path) -> None:
    killed = FlightRecorder(tmp_path, "p1", "one")
    killed.bytes[killed.take(A)] = 1
    for incarnation in ("two", "three"):
        last = read_last_flight(tmp_path)
        assert last is not None
        assert (last.incarnation, last.in_use) == ("one", (A,))
        failed = FlightRecorder(tmp_path, "p1", incarnation)
        if incarnation == "three":
            failed.close()  # one start ends cleanly, the other does not
    up = FlightRecorder(tmp_path, "p1", "four")
    up.forget_last()
    up.bytes[up.take(B)] = 1
    last = read_last_flight(tmp_path)
    assert last is not None
    assert (last.incarnation, last.in_use) == ("four", (B,))
    up.close()
    assert list(tmp_path.iterdir()) == []


def test_a_slot_is_used_again_without_a_trace_of_its_last_owner(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path, "p1", "one")
    slot = recorder.take(A)
    recorder.bytes[slot] = 1
    recorder.give_back(slot)
    assert recorder.take(B) == slot
    last = read_last_flight(tmp_path)
    assert last is not None
    assert last.in_use == ()


def test_a_name_too_long_for_a_slot_goes_unrecorded(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path, "p1", "one")
    slot = recorder.take(ModelKey("t", "x" * 600))
    recorder.bytes[slot] = 1
    recorder.give_back(slot)
    assert slot == HEADER_BYTES
    last = read_last_flight(tmp_path)
    assert last is not None
    assert last.in_use == ()


@pytest.mark.parametrize("content", [b"", b"x", b"{}\n", b'{"v": 9}\n', b'{"v": 1, "pod": "p"}\n' + b"\x01" * 9000])
def test_a_damaged_file_is_no_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    assert read_last_flight(tmp_path) is None


def test_a_copy_that_leaves_after_the_end_is_no_error(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path, "p1", "one")
    slot = recorder.take(A)
    recorder.close()
    recorder.give_back(slot)
