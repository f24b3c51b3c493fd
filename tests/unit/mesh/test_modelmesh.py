"""ModelMesh's three strings as a spec: what cannot be meant is refused as the caller's mistake, whatever it is."""

from __future__ import annotations

import pytest

from mesh.endpoint.modelmesh import spec_from_model_info
from mesh.wire.generated.mmesh_pb2 import ModelInfo
from placement.errors import InvalidSpec


@pytest.mark.parametrize("key", ["{", '{"a":' * 200_000, '{"storage_key": 1}', '{"storage_params": {"bucket": "b"}}'])
def test_a_key_that_says_nothing_clear_is_refused(key: str) -> None:
    with pytest.raises(InvalidSpec, match="key"):
        spec_from_model_info(ModelInfo(type="onnx", path="s3://b/m.onnx", key=key))


def test_a_key_is_a_name_or_an_object_that_holds_it() -> None:
    for key in ("keep", '{"storage_key": "keep"}'):
        spec = spec_from_model_info(ModelInfo(type="mt:onnx:1", path="s3://b/m.onnx", key=key))
        assert (spec.format, spec.storage_key) == ("onnx", "keep")
