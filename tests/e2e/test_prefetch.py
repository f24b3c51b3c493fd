"""Prefetch on real pods: a model that a timer calls has left when it is called, unless it was brought back before.

Two pods get the same calls, one with prefetch and one without. The model's ttl is a part of the period, so it has left
by the next call: a hit is a prefetch that was used, and there is no other. Nothing depends on how fast anything is; a
call that comes late breaks the rhythm, and then a few more calls are made.
"""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mesh.client.operations import registration

if TYPE_CHECKING:
    from mesh.wire.generated import hexcomb_pb2
    from tests.e2e.conftest import Example, ModelFiles, Pod, StartPod

PERIOD_S = 2.0
TTL_S = 0.6
LATE_S = 0.1
"""By which a call may wait for the copy, well within what a timer may be off."""
CALLS_MAX = 40
"""Three gaps make a timer; a late call spoils the six that are looked at."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_a_model_called_by_a_timer_is_back_before_its_next_call_unless_that_is_switched_off(
    start_pod: StartPod, files: ModelFiles, tmp_path: Path
) -> None:
    example = files.scale(3.0)
    settings = {"capacity": "64MiB", "prefetch_period_min_s": 1}
    with_prefetch = start_pod(data_dir=tmp_path / "with", **settings)
    without = start_pod(data_dir=tmp_path / "without", **settings, no_prefetch=True)

    calls = _call_until_one_hits(example, with_prefetch, without)

    used = with_prefetch.status()
    assert (used.hits, used.misses) == (1, calls - 1)
    assert used.prefetches_used >= 1
    # Now nobody calls: it comes once more, for nothing, leaves, and is not brought in another time.
    with_prefetch.wait_until(
        lambda: with_prefetch.status().prefetches_wasted > used.prefetches_wasted,
        "a prefetch that nobody used was counted",
    )
    left = with_prefetch.wait_until(lambda: _if_empty(with_prefetch), "the model left")
    assert left.prefetches == left.prefetches_used + left.prefetches_wasted
    assert _prefetches_on_the_metrics_page(with_prefetch) == {
        "begun": left.prefetches,
        "used": left.prefetches_used,
        "wasted": left.prefetches_wasted,
    }

    status = without.status()
    assert (status.prefetches, status.hits, status.misses) == (0, 0, calls)


def _call_until_one_hits(example: Example, first: Pod, second: Pod) -> int:
    """Call the model on both pods each period, until the first answers from a copy that was there; how often that was.

    Its ttl begins with its last use, or when it was brought in.
    """
    with first.client() as on_first, second.client() as on_second:
        for client in (on_first, on_second):
            client.register_many([registration("timed", uri=example.uri, format="onnx", ttl_s=TTL_S)])
        for call in range(1, CALLS_MAX + 1):
            on_first.infer("timed", example.inputs)
            due_s = time.monotonic() + PERIOD_S
            on_second.infer("timed", example.inputs)
            if first.status().hits:
                return call
            for pod in (first, second):
                _wait_empty(pod)
            time.sleep(max(0.0, due_s - LATE_S - time.monotonic()))  # a timer is made of time
            while time.monotonic() < due_s + LATE_S and not first.status().models_resident:
                pass
            time.sleep(max(0.0, due_s - time.monotonic()))
    raise AssertionError(f"no prefetch was used in {CALLS_MAX} calls: {first.status()}\n{first.log_text()[-6000:]}")


def _wait_empty(pod: Pod) -> None:
    """A copy that comes before its time may be here instead."""
    pod.wait_until(lambda: _if_empty(pod) or pod.status().prefetches, "the model left")


def _if_empty(pod: Pod) -> hexcomb_pb2.PodDescription | None:
    status = pod.status()
    return None if status.models_resident or status.models_loading else status


def _prefetches_on_the_metrics_page(pod: Pod) -> dict[str, int]:
    with urllib.request.urlopen(f"{pod.http}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    found = (line.split() for line in lines if line.startswith("hexcomb_prefetches_total{"))
    return {name.split('"')[1]: int(float(count)) for name, count in found}
