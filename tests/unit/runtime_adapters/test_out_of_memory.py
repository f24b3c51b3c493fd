"""Want of memory is told apart from a broken model, whoever says it."""

from __future__ import annotations

import pytest

from runtime_adapters.errors import BadInput, LoadFailed, ModelRaised, OutOfMemory
from runtime_adapters.isolation_messages import describe_error, error_from
from runtime_adapters.onnx_errors import run_error
from runtime_adapters.out_of_memory import ran_out


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc"),
        RuntimeError("[ONNXRuntimeError] : 1 : FAIL : bad allocation"),
        RuntimeError("Failed to allocate memory for requested buffer of size 4096000000"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: can't allocate memory: you tried"),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_frameworks_words_for_want_of_memory_are_known(error: Exception) -> None:
    assert ran_out(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("axis 3 is out of bounds"),
        RuntimeError("Got invalid dimensions for input: x"),
        OSError(28, "No space left on device"),
    ],
)
def test_other_failures_are_not_mistaken_for_it(error: Exception) -> None:
    assert not ran_out(error)


def test_onnxruntime_s_error_in_a_run_is_typed() -> None:
    assert isinstance(run_error(RuntimeError("Failed to allocate memory for requested buffer")), OutOfMemory)
    assert isinstance(run_error(RuntimeError("Non-zero status code")), ModelRaised)
    refused = type("InvalidArgument", (Exception,), {})("index out of memory range")
    assert isinstance(run_error(refused), BadInput), "what the client sent is the client's, whatever the words"


def test_an_isolated_process_that_meets_its_own_limit_asks_nobody_to_make_room() -> None:
    for error in (MemoryError(), OutOfMemory("onnxruntime found no memory")):
        raised, _ = error_from(describe_error(error, LoadFailed))
        assert type(raised) is LoadFailed
        assert "not enough memory" in str(raised)
