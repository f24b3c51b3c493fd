"""What a pod takes of its box by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.box import BASE_BYTES, box_defaults, this_box
from mesh.settings import Settings
from tests.unit.runtime_adapters.boxes import GIB, KUBERNETES_V1, MIB, NO_GROUPS, build, limited_v1


@pytest.mark.parametrize(
    ("limit_bytes", "capacity_bytes"),
    [
        (256 * MIB, 64 * MIB),
        (512 * MIB, 512 * MIB * 8 // 10 - BASE_BYTES),
        (GIB, GIB * 8 // 10 - BASE_BYTES),
        (16 * GIB, 16 * GIB * 8 // 10 - BASE_BYTES),
    ],
)
def test_of_a_limited_box_models_get_what_the_process_and_safety_leave(
    tmp_path: Path, limit_bytes: int, capacity_bytes: int
) -> None:
    defaults = box_defaults(build(limited_v1(limit_bytes, 0), tmp_path))
    assert defaults.capacity_bytes == pytest.approx(max(capacity_bytes, limit_bytes // 4), abs=1)
    assert defaults.capacity_bytes < limit_bytes - BASE_BYTES // 2 or limit_bytes < 512 * MIB


def test_on_a_machine_without_limits_others_are_left_their_part(tmp_path: Path) -> None:
    defaults = box_defaults(build(NO_GROUPS, tmp_path), affinity=7)
    assert defaults.capacity_bytes == int(64 * GIB * 0.6)
    assert "no control group" in defaults.capacity_why
    assert defaults.workers == 7


def test_workers_follow_the_quota_rounded_up_and_are_two_at_least(tmp_path: Path) -> None:
    assert box_defaults(build(KUBERNETES_V1, tmp_path), affinity=16).workers == 3
    assert box_defaults(build(KUBERNETES_V1, tmp_path), affinity=1).workers == 2


def test_the_settings_say_where_a_value_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEXCOMB_CAPACITY", raising=False)
    assert Settings().origin("capacity") == this_box().capacity_why
    assert "--capacity" in Settings(capacity="1GiB").origin("capacity")  # type: ignore[arg-type]
    monkeypatch.setenv("HEXCOMB_INFER_THREADS", "5")
    assert "HEXCOMB_INFER_THREADS" in Settings().origin("infer_threads")
