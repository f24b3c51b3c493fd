"""ModelMesh's three strings as a spec: what cannot be meant is refused as the caller's mistake, whatever it is."""

from __future__ import annotations

import json

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


@pytest.mark.parametrize(
    ("params", "uri"),
    [
        ({"type": "s3", "bucket": "models"}, "s3://models/d/m.onnx"),
        ({"type": "s3"}, "s3:///d/m.onnx"),
        ({"type": "gcs", "bucket": "models"}, "gs://models/d/m.onnx"),
        ({"type": "azure", "container": "models", "account_name": "acct1"}, "az://models@acct1/d/m.onnx"),
        ({"type": "azure", "container": "models"}, "az://models/d/m.onnx"),
        ({"type": "pvc", "name": "claim"}, "pvc://claim/d/m.onnx"),
    ],
)
def test_storage_params_say_in_which_bucket_a_path_lies(params: dict[str, str], uri: str) -> None:
    key = json.dumps({"storage_key": "keep", "storage_params": params})
    spec = spec_from_model_info(ModelInfo(type="onnx", path="d/m.onnx", key=key))
    assert (spec.uri, spec.storage_key) == (uri, "keep")


@pytest.mark.parametrize(
    "params",
    [
        {"bucket": "b"},
        {"type": "hdfs", "bucket": "b"},
        {"type": "s3", "bucket": "b", "endpoint_url": "https://evil.example"},
        {"type": "s3", "bucket": 5},
    ],
)
def test_a_registration_cannot_send_a_storage_key_elsewhere(params: dict[str, object]) -> None:
    key = json.dumps({"storage_key": "keep", "storage_params": params})
    with pytest.raises(InvalidSpec, match="storage_params"):
        spec_from_model_info(ModelInfo(type="onnx", path="d/m.onnx", key=key))
