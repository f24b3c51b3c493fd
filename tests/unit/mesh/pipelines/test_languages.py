"""What goes from step to step: that it stays within what one request may take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mesh.pipelines.errors import TooMuch
from mesh.pipelines.languages import JsonSteps
from mesh.pipelines.model_calls import Answered
from placement.records import ModelRecord, ModelSpec
from runtime_adapters.base import V1_BODY, ModelMetadata, TensorSpec

RECORD = ModelRecord("t", "m", ModelSpec("file:///m", "python"), 1, 0.0, 0.0)
BODY = (TensorSpec(V1_BODY, "BYTES", (1,)),)
ANSWER = b'{"predictions": [' + b"1," * 200 + b"1]}"


class ReadsBodies:
    """A model that reads V1 requests itself."""

    async def metadata(self, asking: Any, record: ModelRecord) -> ModelMetadata:
        return ModelMetadata("python", BODY, BODY)

    async def ask(self, asking: Any, record: ModelRecord, given: Any, outputs: Any) -> Answered:
        return Answered({V1_BODY: np.array([ANSWER], np.object_)}, cold=False)


def steps(bytes_max: int) -> JsonSteps:
    models: Any = ReadsBodies()
    asking: Any = None
    return JsonSteps(models, asking, bytes_max, 10)


async def test_a_body_counts_as_what_it_takes_once_it_is_read() -> None:
    assert (await steps(10 * len(ANSWER)).ask(RECORD, {"instances": [1]}, ()))["predictions"] == [1] * 201
    with pytest.raises(TooMuch, match="pipeline_bytes_max"):
        await steps(4 * len(ANSWER)).ask(RECORD, {"instances": [1]}, ())
