"""Want of memory, in whatever words a framework puts it.

Python raises MemoryError. Native frameworks raise their own exceptions with the C++ library's words in them
(`std::bad_alloc`), their allocators' (onnxruntime: "Failed to allocate memory for requested buffer of size ..."), the
operating system's (ENOMEM) or CUDA's. Nothing but the text tells them apart from a broken model, so the texts stand
here once, each adapter asks, and what leaves it is `OutOfMemory`: the caller makes room and tries again, which for a
broken model would be in vain, and which a model that is not broken deserves.

Where an isolated process meets its own limit, making room in the pod does not help: there it stays what it was.
"""

from __future__ import annotations

_SIGNS = (
    "bad_alloc",  # C++: onnxruntime, xgboost, lightgbm
    "bad allocation",
    "failed to allocate",  # onnxruntime's arenas
    "out of memory",  # CUDA, torch, XGBoost
    "memory allocation",  # XGBoost
    "cannot allocate memory",  # ENOMEM
    "can't allocate memory",  # torch's CPU allocator
    "not enough memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cuda_error_out_of_memory",
)
_CLASS_NAMES = frozenset({"OutOfMemoryError"})
"""`torch.OutOfMemoryError`, which is no MemoryError."""


def ran_out(error: BaseException) -> bool:
    """Whether a framework's exception says that there was no memory."""
    if isinstance(error, MemoryError) or type(error).__name__ in _CLASS_NAMES:
        return True
    text = str(error).lower()
    return any(sign in text for sign in _SIGNS)
