"""Our own messages of the V2 protocol, beside those that `tritonclient` was made with."""

from __future__ import annotations

from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from mesh.wire.generated import inference_pb2

TRITON: dict[str, Any] = {
    **service_pb2.DESCRIPTOR.message_types_by_name,
    **model_config_pb2.DESCRIPTOR.message_types_by_name,
}


def fields_of(message: Any, prefix: str = "") -> set[tuple[Any, ...]]:
    """Every field of a message and of those that are declared in it: name, number, type, and whether it repeats."""
    found = {(f"{prefix}{each.name}", each.number, each.type, each.is_repeated) for each in message.fields}
    for nested in message.nested_types:
        found |= fields_of(nested, f"{prefix}{nested.name}.")
    return found


@pytest.mark.parametrize("name", inference_pb2.DESCRIPTOR.message_types_by_name)
def test_every_field_has_triton_s_name_number_and_type(name: str) -> None:
    ours = inference_pb2.DESCRIPTOR.message_types_by_name[name]
    assert fields_of(ours) - fields_of(TRITON[name]) == set()
