"""The fake adapter keeps the same promises as the real ones."""

from pathlib import Path

import numpy as np

from runtime_adapters.contract import AdapterCase, Example, Prediction
from runtime_adapters.fake import FakeSpec, write_fake_artifact


def _build(directory: Path) -> Example:
    artifact = write_fake_artifact(directory / "model.json", FakeSpec(factor=2.5, hot_bytes=2_000, fetched_bytes=1_500))
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    return Example(
        artifact,
        (Prediction({"x": x}, {"y": x * np.float32(2.5), "total": x.sum(axis=1)}),),
        refused=({"x": np.full((1, 4), np.nan, np.float32)},),
    )


CASES = [AdapterCase("fake", "fake", _build)]
