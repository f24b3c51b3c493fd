"""`kill -9` in the middle of 1,000 registrations: after a restart every acknowledged one is there, and infers.

Clients on several threads register one model per call, so that the kill falls among calls of every stage: not yet
sent, in the store's transaction, committed but not answered. Of the unacknowledged ones each may be there or not, but
whole: with the spec that was sent.
"""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mesh.client import Client, HexcombError, RetryPolicy

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, StartPod

MODELS = 1000
KILLED_AFTER = 400
THREADS = 8


def test_what_was_acknowledged_before_a_kill_is_there_after_a_restart_and_infers(
    start_pod: StartPod, files: ModelFiles, tmp_path: Path
) -> None:
    pod = start_pod(capacity="64MiB")
    kinds = [files.scale(factor) for factor in (2.0, 3.0, 4.0)]
    acknowledged: dict[int, int] = {}
    unanswered: set[int] = set()
    enough = threading.Event()

    def register(part: int) -> None:
        with Client(pod.target, timeout_s=10.0, retry=RetryPolicy(attempts_max=1)) as client:
            for index in range(part, MODELS, THREADS):
                try:
                    result = client.register(
                        f"model-{index}", uri=kinds[index % 3].uri, labels={"index": str(index)}, priority=index % 7
                    )
                except HexcombError:
                    unanswered.add(index)
                    return
                acknowledged[index] = result.generation
                if len(acknowledged) >= KILLED_AFTER:
                    enough.set()

    with ThreadPoolExecutor(THREADS) as threads:
        running = [threads.submit(register, part) for part in range(THREADS)]
        assert enough.wait(60), pod.log_text()
        pod.stop(signal.SIGKILL)
        for each in running:
            each.result()
    assert KILLED_AFTER <= len(acknowledged) < MODELS, "the kill came too late to prove anything"
    assert unanswered, "no call was under way when the kill came"

    again = start_pod(capacity="64MiB")
    with again.client() as client:
        found = {model.id: model for model in client.list_models()}
        missing = [index for index in acknowledged if f"model-{index}" not in found]
        assert missing == []
        extra = set(found) - {f"model-{index}" for index in acknowledged | dict.fromkeys(unanswered, 0)}
        assert extra == set()
        for model in found.values():
            index = int(model.id.removeprefix("model-"))
            spec = model.spec
            assert (spec.uri, spec.labels["index"], spec.priority) == (kinds[index % 3].uri, str(index), index % 7)
            assert model.generation == acknowledged.get(index, 1)

        for index in acknowledged:
            kind = kinds[index % 3]
            answer = client.infer(f"model-{index}", kind.inputs)
            np.testing.assert_array_equal(answer.outputs["y"], kind.expected["y"])
        assert client.register("one-more", uri=kinds[0].uri).generation == 1
    again.wait_settled()
