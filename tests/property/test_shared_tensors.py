"""Tensors through shared memory: whatever is written is read; whatever a hostile side describes is refused."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime_adapters.datatypes import DTYPE_OF
from runtime_adapters.memory_reading import MemoryReading
from runtime_adapters.shared_tensors import BadSlot, TensorSegment, TensorsTooLarge, UnsendableTensor

_SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@st.composite
def _arrays(draw: st.DrawFn) -> Any:
    datatype = draw(st.sampled_from(list(DTYPE_OF)))
    shape = draw(_SHAPES)
    if datatype == "BYTES":
        count = int(np.prod(shape))
        array = np.empty(count, dtype=np.object_)
        array[:] = draw(st.lists(st.binary(max_size=20), min_size=count, max_size=count))
        return array.reshape(shape)
    if datatype == "BF16":
        return draw(hnp.arrays(np.uint16, shape)).view(DTYPE_OF["BF16"])
    return draw(hnp.arrays(DTYPE_OF[datatype], shape))


@pytest.fixture
def segment() -> Iterator[TensorSegment]:
    made = TensorSegment.create("test", 8 << 20)
    yield made
    made.close()
    made.close()


@settings(deadline=None)
@given(tensors=st.dictionaries(st.text(max_size=5), _arrays(), max_size=4), copy=st.booleans())
def test_what_is_written_is_read(tensors: dict[str, Any], copy: bool) -> None:
    writer = TensorSegment.create("test", 8 << 20)
    try:
        read = writer.read(writer.write(tensors), copy=copy)
        assert list(read) == list(tensors)
        for name, array in tensors.items():
            assert read[name].dtype == array.dtype
            assert read[name].shape == array.shape
            if array.dtype == object:
                assert read[name].tolist() == array.tolist()
            else:
                assert read[name].tobytes() == array.tobytes()
    finally:
        writer.close()


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)
_SLOTS = st.fixed_dictionaries(
    {
        "name": st.text(max_size=3) | _ANYTHING,
        "datatype": st.sampled_from(["FP32", "BYTES", "BOOL", "FP31"]) | _ANYTHING,
        "shape": st.lists(st.integers(-2, 1 << 63), max_size=4) | _ANYTHING,
        "offset": st.integers(-64, 1 << 63).map(lambda n: n // 64 * 64) | _ANYTHING,
        "bytes": st.integers(-1, 1 << 63) | st.integers(0, 200) | _ANYTHING,
    }
)


@settings(deadline=None)
@given(slots=st.lists(_SLOTS, max_size=3) | _ANYTHING)
def test_any_description_is_read_or_refused(slots: Any) -> None:
    segment = TensorSegment.create("test", 8 << 20)
    try:
        segment.write({"x": np.arange(40, dtype=np.uint8)})
        segment.read(slots, copy=True)
    except BadSlot:
        pass
    finally:
        segment.close()


def test_views_of_other_orders_are_written_as_they_look(segment: TensorSegment) -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4)[::-1, ::2].T
    read = segment.read(segment.write({"x": array}), copy=True)["x"]
    assert read.dtype == np.int32
    assert read.tolist() == array.tolist()


def test_growth_keeps_the_views_that_are_out(segment: TensorSegment) -> None:
    view = segment.read(segment.write({"x": np.arange(10)}), copy=False)["x"]
    segment.write({"x": np.arange(10), "y": np.zeros(4 << 20, dtype=np.uint8)})
    assert view.tolist() == list(range(10))


def test_the_limit_holds_and_pages_come_back(segment: TensorSegment) -> None:
    with pytest.raises(TensorsTooLarge, match="8,388,608"):
        segment.write({"x": np.zeros((8 << 20) + 1, dtype=np.uint8)})
    segment.write({"x": np.ones(8 << 20, dtype=np.uint8)})
    assert segment.resident_bytes() >= 8 << 20
    segment.release_above(1 << 20)
    assert segment.resident_bytes() <= 1 << 20


def test_what_is_no_tensor_is_refused(segment: TensorSegment) -> None:
    with pytest.raises(UnsendableTensor, match="complex128 has no V2 datatype"):
        segment.write({"x": np.zeros(2, dtype=complex)})
    with pytest.raises(UnsendableTensor, match="an element is a int"):
        segment.write({"x": np.array([b"a", 1], dtype=object)})


def test_more_than_the_box_has_left_is_refused_before_a_page_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    left_bytes = 20 << 20
    full = MemoryReading(1 << 30, "memory.max of /pod", 1 << 30, 1 << 30, (1 << 30) - left_bytes, 0, 0, 0, 0, 0)
    monkeypatch.setattr("runtime_adapters.shared_tensors.read_memory", lambda: full)
    segment = TensorSegment.create("test", 1 << 30)
    try:
        segment.write({"x": np.zeros(left_bytes, np.uint8)})
        segment.release_above(0)
        with pytest.raises(TensorsTooLarge, match=r"left here \(memory.max of /pod\)"):
            segment.write({"x": np.zeros(left_bytes + (1 << 20), np.uint8)})
        monkeypatch.setattr("runtime_adapters.shared_tensors.read_memory", lambda: replace(full, limit_bytes=0))
        segment.write({"x": np.zeros(left_bytes + (1 << 20), np.uint8)})
    finally:
        segment.close()
