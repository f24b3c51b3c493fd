"""What a load alone can tell of a model, and what is refused then."""

from __future__ import annotations

import pytest

from mesh.loading.loads import check_one_copy
from placement.records import ModelSpec
from runtime_adapters.base import ModelMetadata
from runtime_adapters.errors import BadArtifact


@pytest.mark.parametrize(("copies_max", "says"), [(None, "not set"), (2, "2")])
def test_a_model_that_keeps_sequences_may_have_one_copy_in_a_pool(copies_max: int | None, says: str) -> None:
    spec = ModelSpec(uri="file:///m", copies_max=copies_max)
    with pytest.raises(BadArtifact, match=f"copies_max is {says}: register it with copies_max 1"):
        check_one_copy(spec, ModelMetadata("python", (), (), sequences=True))
    check_one_copy(spec, ModelMetadata("python", (), ()))
    check_one_copy(ModelSpec(uri="file:///m", copies_max=1), ModelMetadata("python", (), (), sequences=True))
