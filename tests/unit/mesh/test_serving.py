"""A request whose copy fails it is tried once more; what else goes wrong meanwhile is no defect."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mesh.batching.joining import Request
from mesh.request import Tensors
from mesh.running import CopyGone
from mesh.serving import Serving
from mesh.tally import Tally
from placement.records import ModelRecord, ModelSpec
from runtime_adapters.base import ModelMetadata
from runtime_adapters.errors import ModelCrashed, OutOfMemory

RECORD = ModelRecord("default", "m", ModelSpec(uri="file:///m"), 1, 0.0, 0.0)
ANSWER = {"y": np.ones((1, 1), np.float32)}


class Pod:
    """Gives out copies whose runs end as they are told to."""

    def __init__(self, *ends: Exception | dict[str, Any]) -> None:
        self.ends = list(ends)
        self.pins = self.room_made = 0
        self.crashes: list[str] = []

    def copy(self) -> Any:
        self.pins += 1
        return SimpleNamespace(
            checker=SimpleNamespace(check=lambda inputs, datatypes: inputs, check_outputs=lambda outputs: outputs),
            tally=Tally(),
            model=SimpleNamespace(metadata=ModelMetadata("test", (), ())),
            meter=SimpleNamespace(failed=lambda code: None, answered=lambda seconds, cold: None),
            request_bytes_max=4096,
            died=False,
            let_go=self.let_go,
        )

    def let_go(self) -> None:
        self.pins -= 1

    async def wait_servable(self, wanted: Any, deadline_s: float | None) -> Any:
        return self.copy()

    async def make_room(self, resident: Any, request_bytes: int, why: str) -> None:
        self.room_made += 1

    def crashed(self, resident: Any, why: str) -> None:
        self.crashes.append(why)

    def runs_inline(self, resident: Any, request_bytes: int) -> bool:
        return False

    async def run_in_thread(self, resident: Any, request: Request) -> Any:
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end


@pytest.mark.parametrize(
    ("meanwhile", "crashes"), [(CopyGone(), []), (ModelCrashed("the process is gone"), ["the process is gone"])]
)
async def test_a_request_that_found_no_memory_and_then_lost_its_copy_is_answered_by_the_next_one(
    meanwhile: Exception, crashes: list[str]
) -> None:
    pod: Any = Pod(OutOfMemory("std::bad_alloc"), meanwhile, ANSWER)
    nothing: Any = None
    serving = Serving(nothing, nothing, pod, pod, nothing, lambda error: "", has_chance=lambda record: True)

    async def decode() -> Tensors:
        return Tensors({"x": np.ones((1, 1), np.float32)}, {"x": "FP32"}, (), 4)

    answer = await serving.infer(RECORD, pod.copy(), None, decode)
    assert answer.outputs is ANSWER
    assert (pod.room_made, pod.crashes, pod.pins, pod.ends) == (1, crashes, 0, [])
