"""One loaded ONNX model: running it, and changing the form of its weights while it runs.

**Cold and hot.** A model with weights worth mapping has two forms. Cold, its weights lie in the mapped file: it costs a
millisecond to make, shares its pages with whoever maps the same file, and the kernel may take pages back that nobody
reads. Hot, the kernels' packed copies of them are this process's own memory: matrix products run as fast as
onnxruntime can (a quarter less time for single rows, half for a few). The other form is built beside the one that
serves, and takes its place in one assignment: runs that began on the old session end on it, and it is freed after the
last of them.

**As it was fetched.** A model that came from afar is loaded from the fetched file first, and goes on as its prepared
form in the same way, once that was made beside it.

A session is never shared between forms. Both prepared files are the same, so a change of form answers to the last bit
like a reload does.

**Parked.** A model whose weights lie in files of their own is parked by dropping the session, with all that it has on
its device, and holding the files in RAM (`mapped_files`). It comes back as a new session, which reads them there: no
fetch, no disk, but a copy from memory that no driver has locked, and the graph is set up anew. Models with few weights
are not worth a tier of their own: loading them takes as long.

Not taken: weights that we copy to the device ourselves and hand to the session (`add_initializer`), which would move
them at the bus's full speed. On the CPU onnxruntime uses such tensors in place, seen with DLPack; on CUDA it does so
only where it finds their device equal to the planned one, else it silently loads its own beside ours, which would
oversell the device, and there was no GPU to see which of the two happens.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime_adapters.base import DYNAMIC, Array, Device, LoadedModel, ModelMetadata, Size, Tensors
from runtime_adapters.datatypes import DTYPE_OF
from runtime_adapters.errors import BadInput, LoadFailed, ModelRaised
from runtime_adapters.mapped_files import MappedFiles
from runtime_adapters.onnx_errors import run_error

logger = logging.getLogger(__name__)

OLD_FORM_WAIT_S = 60.0
"""How long a change of form waits for the runs on the old session, so that what is then counted is what is there."""
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_Run = Callable[[tuple[str, ...], Tensors], dict[str, Array]]
"""Wanted outputs and inputs to answers."""


@dataclass(frozen=True, slots=True)
class OtherForm:
    """The second way in which a model can hold its weights."""

    open: Callable[[], Any]
    """A new session of this form. Blocking."""
    size: Size


class OnnxModel:
    """One session, or for a moment two. Threads may run it at the same time."""

    __slots__ = (
        "_changing",
        "_default_outputs",
        "_form",
        "_is_hot",
        "_metadata",
        "_other",
        "_run",
        "_session",
        "_weight_files",
    )

    def __init__(
        self,
        session: Any,
        metadata: ModelMetadata,
        size: Size,
        *,
        is_hot: bool = False,
        reopen: Callable[[], Any] | None = None,
        other: OtherForm | None = None,
        weight_files: tuple[Path, ...] = (),
    ) -> None:
        """`reopen` makes a session like this one. With it, and with another form, the model can change between both;
        with it, and with the files that hold its weights, it can be parked."""
        self._metadata = metadata
        self._session = session
        self._form = OtherForm(reopen or (lambda: session), size)
        self._other = other
        self._is_hot = is_hot
        self._weight_files = weight_files if reopen else ()
        self._default_outputs = tuple(spec.name for spec in metadata.outputs)
        self._run: _Run | None = _runner(session, metadata)
        self._changing = threading.Lock()

    @property
    def metadata(self) -> ModelMetadata:
        return self._metadata

    def warm_up(self) -> None:
        if self._run is not None:
            self._warm(self._run)

    def infer(self, inputs: Tensors, outputs: Sequence[str] = ()) -> dict[str, Array]:
        run = self._run
        if run is None:
            raise ModelRaised("the copy was unloaded or parked before this run; ask for the model again")
        return run(tuple(outputs) or self._default_outputs, inputs)

    def size(self) -> Size:
        return self._form.size

    # A change of form ---------------------------------------------------------------------------------------------

    @property
    def is_hot(self) -> bool:
        return self._is_hot

    def hot_size(self) -> Size | None:
        if self._other is None:
            return None
        return self._form.size if self._is_hot else self._other.size

    def promote(self) -> None:
        self._change(to_hot=True)

    def demote(self) -> None:
        self._change(to_hot=False)

    def go_on_as(self, prepared: LoadedModel) -> None:
        assert isinstance(prepared, OnnxModel)
        if prepared.metadata != self._metadata:
            raise LoadFailed("the prepared form has other inputs or outputs than the model; it is not taken")
        with self._changing:
            session, run = prepared._session, prepared._run
            form, other, is_hot = prepared._form, prepared._other, prepared._is_hot
            weight_files = prepared._weight_files
            prepared.unload()  # it lets go of what is this model's now
            if self._run is not None and run is not None:
                self._form, self._other, self._is_hot = form, other, is_hot
                self._weight_files = weight_files
                self._run_from_now_on(session, run)

    # Leaving the device -------------------------------------------------------------------------------------------

    def parked_size(self) -> Size | None:
        if not self._weight_files:
            return None
        file_bytes = sum(path.stat().st_size for path in self._weight_files)
        return Size(host_bytes=0, mapped_bytes=file_bytes, shared=self._form.size.shared)

    def park(self) -> ParkedOnnx:
        size = self.parked_size()
        if size is None:
            raise LoadFailed("this model has no weights in files of their own; unload it instead")
        with self._changing:
            try:
                files = MappedFiles(self._weight_files)
            except OSError as error:
                raise LoadFailed(f"the model's weights could not be read into RAM: {error}") from error
            self._run = self._session = None
        return ParkedOnnx(self, files, size)

    def reopened(self) -> OnnxModel:
        """This model, with a new session. Raises what opening one raises."""
        with self._changing:
            session = self._form.open()
            run = _runner(session, self._metadata)
            self._warm(run)
            self._session, self._run = session, run
        return self

    def unload(self) -> None:
        with self._changing:  # a form that is being built is freed with the rest
            self._run = self._session = None
            self._other, self._weight_files = None, ()
            self._form = OtherForm(lambda: None, self._form.size)

    def _change(self, *, to_hot: bool) -> None:
        with self._changing:
            if self._other is None or self._is_hot == to_hot:
                return
            session = self._other.open()
            run = _runner(session, self._metadata)
            self._warm(run)
            self._form, self._other, self._is_hot = self._other, self._form, to_hot
            self._run_from_now_on(session, run)

    def _run_from_now_on(self, session: Any, run: _Run) -> None:
        """Ends when the last run on the session before has ended, and that is freed."""
        old_gone = threading.Event()
        weakref.finalize(self._session, old_gone.set)
        self._session, self._run = session, run
        if not old_gone.wait(OLD_FORM_WAIT_S):
            logger.warning("a run on the old form of a model goes on for more than %g s", OLD_FORM_WAIT_S)

    def _warm(self, run: _Run) -> None:
        zeros: dict[str, Array] = {}
        for spec in self._metadata.inputs:
            shape = tuple(1 if size == DYNAMIC else size for size in spec.shape)
            empty = b"" if spec.datatype == "BYTES" else 0
            zeros[spec.name] = np.full(shape, empty, dtype=DTYPE_OF[spec.datatype])
        try:
            run(self._default_outputs, zeros)
        except (BadInput, ModelRaised):
            logger.debug("warm-up on zeros was refused by the model", exc_info=True)


class ParkedOnnx:
    """A model without a session, whose weights are in RAM."""

    def __init__(self, model: OnnxModel, files: MappedFiles, size: Size) -> None:
        self._model = model
        self._files = files
        self._size = size

    def size(self) -> Size:
        return self._size

    def unpark(self, device: Device) -> OnnxModel:
        """The device is the one that the session was made for."""
        model = self._model.reopened()
        self._files.close()
        return model

    def unload(self) -> None:
        self._files.close()
        self._model.unload()


# --- running ----------------------------------------------------------------------------------------------------------


def _runner(session: Any, metadata: ModelMetadata) -> _Run:
    """The run function for these datatypes: most models need neither strings nor BF16, and pay for neither."""
    tensors = (*metadata.inputs, *metadata.outputs)
    strings = any(spec.datatype == "BYTES" for spec in tensors)
    if any(spec.datatype == "BF16" for spec in tensors):
        run_arrays = _bfloat16_runner(session)
    else:

        def run_arrays(names: tuple[str, ...], inputs: Tensors) -> list[Any]:
            answer: list[Any] = session.run(names, inputs)
            return answer

    def run(names: tuple[str, ...], inputs: Tensors) -> dict[str, Array]:
        if strings:
            inputs = {name: _decoded(name, array) for name, array in inputs.items()}
        try:
            arrays = run_arrays(names, inputs)
        except Exception as error:
            raise run_error(error) from error
        if strings:
            arrays = [_encoded(array) for array in arrays]
        return dict(zip(names, arrays, strict=True))

    return run


def _bfloat16_runner(session: Any) -> Callable[[tuple[str, ...], Tensors], list[Any]]:
    """NumPy has no bfloat16 that onnxruntime knows: the bits cross as OrtValues, in and out."""
    from onnxruntime import OrtValue

    bfloat16 = DTYPE_OF["BF16"]

    def run(names: tuple[str, ...], inputs: Tensors) -> list[Any]:
        feed: dict[str, Any] = {}
        for name, array in inputs.items():
            if array.dtype == bfloat16:
                bits = np.ascontiguousarray(array).view(np.uint16)
                feed[name] = OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)
            else:
                feed[name] = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        return [to_array(value) for value in session.run_with_ort_values(names, feed)]

    def to_array(value: Any) -> Array:
        if value.data_type() != "tensor(bfloat16)":
            array: Array = value.numpy()
            return array
        bits = np.empty(value.shape(), np.uint16)
        ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
        return bits.view(bfloat16)

    return run


def _decoded(name: str, array: Array) -> Array:
    if array.dtype != np.object_:
        return array
    texts = np.empty(array.size, np.object_)
    for index, item in enumerate(array.ravel()):
        try:
            texts[index] = item.decode()
        except UnicodeDecodeError as error:
            raise BadInput(
                f"input {name!r}: element {index} is not UTF-8 ({error.reason} at byte {error.start}); "
                "ONNX strings are UTF-8 text"
            ) from None
    return texts.reshape(array.shape)


def _encoded(array: Array) -> Array:
    if array.dtype.kind not in "OUS":
        return array
    items = np.empty(array.size, np.object_)
    items[:] = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel()]
    return items.reshape(array.shape)
