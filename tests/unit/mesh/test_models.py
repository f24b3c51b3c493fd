"""What is known of a spec before its artifact is fetched."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.models import Models
from placement.errors import InvalidSpec
from placement.records import ModelSpec
from runtime_adapters.artifacts.locations import SourcePolicy


def test_a_refused_signed_url_is_named_without_its_signature() -> None:
    unused: Any = None
    models = Models(unused, SourcePolicy(), unused, unused)
    with pytest.raises(InvalidSpec, match=r"store\.example/m\.pt2") as refused:
        models.check(ModelSpec(uri="https://store.example/m.pt2?X-Amz-Signature=hunter2", format="torch"))
    assert "hunter2" not in str(refused.value)
