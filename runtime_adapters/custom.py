"""The base class of custom Python models: what a user writes when no format fits.

A `python` artifact is a directory with a `model.py` that holds exactly one subclass of `Model`:

    import numpy as np
    from runtime_adapters.custom import Model, TensorSpec

    class Thresholds(Model):
        inputs = (TensorSpec("scores", "FP32", (-1,)),)
        outputs = (TensorSpec("labels", "BYTES", (-1,)),)
        parameters = {"limit": "0.5"}

        def load(self):
            self.limit = float(self.parameters["limit"])

        def predict(self, inputs):
            return {"labels": np.where(inputs["scores"] > self.limit, b"yes", b"no")}

It runs in a process of its own, so it may hold the GIL, leak or crash without harm to other models. Other files of the
artifact are beside it: `self.artifact` is the directory, it is the working directory, and it can be imported from.
Unless it comes from a prefix that the operator trusts, it is jailed: no network, no other files, no child processes.

What `predict` returns must match `outputs` in names, datatypes and shapes exactly; nothing is cast. BYTES may be given
as bytes, str, or NumPy's fixed-width strings.

Each request goes through `preprocess`, `predict` and `postprocess`; one for an explanation through `preprocess` and
`explain`. All of them, `load` and `unload` may be coroutines (`async def`).

`predict` may be a generator, of either kind: then a request has as many answers as it yields, and clients call it by
Triton's ModelStreamInfer or by `generate_stream` (the model is *decoupled*, in Triton's word). It ends where it yields
when its client leaves.

With `sequences = True` it may keep something between the requests of one sequence. `self.sequence` says to which one
the request belongs that `predict` is given. In a pool, such a model is registered with `copies_max: 1`, and a sequence
whose copy had to leave memory begins anew.

A class that was written for KServe's SDK is served as well: `runtime_adapters.kserve`.

A `requirements.txt` in the artifact asks for packages: where the pod lacks them, and its operator has said where they
come from (`--package-index`), an artifact of a trusted prefix gets them, in front of the pod's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from runtime_adapters.base import Array, Device, TensorSpec


@dataclass(frozen=True, slots=True)
class SequencePosition:
    """Which sequence a request belongs to, and where in it."""

    id: str
    start: bool
    """It is the first,"""
    end: bool
    """and it is the last."""


class Model:
    """Subclass this once in `model.py`. It is made without arguments; the attributes below are set before `load`."""

    inputs: ClassVar[Sequence[TensorSpec]] = ()
    """What clients must send: name, V2 datatype, shape with -1 for any size."""
    outputs: ClassVar[Sequence[TensorSpec]] = ()
    """What `predict` returns. An optional output may be left out unless a client asks for it by name."""
    batch_dimension: ClassVar[bool] = False
    """Dimension 0 of every input and output counts rows that do not influence one another."""
    batch_rows_max: ClassVar[int | None] = None
    """The most rows that one run takes well: requests are joined up to it. A single one may have more."""
    sequences: ClassVar[bool] = False
    """It keeps something from one request of a sequence to the next."""
    parameters: Mapping[str, str] = MappingProxyType({})
    """The parameters that a spec may set, with their defaults. On the instance: as the spec has set them."""

    artifact: Path
    """The directory that holds `model.py`."""
    device: Device
    """Where the pod wants this copy."""
    threads: int
    """How many threads one run should use."""
    sequence: SequencePosition
    """Before each `predict` of a model with `sequences`."""

    def load(self) -> Any:
        """Make ready to predict. An exception here fails the load."""

    def preprocess(self, inputs: dict[str, Array]) -> Any:
        """What `predict` and `explain` are given in place of the inputs."""
        return inputs

    def predict(self, inputs: Any) -> Any:
        """Answer one request: an array for each output; with one output, the array alone will do. A generator yields
        any number of answers.

        The arrays are this call's own. Raise `runtime_adapters.errors.BadInput` to say that the client's values are at
        fault; any other exception is reported as the model's.
        """
        raise NotImplementedError(f"{type(self).__name__} has no predict method")

    def postprocess(self, answer: Any) -> Any:
        """What clients get in place of what `predict` has returned; of a stream, of each answer."""
        return answer

    def explain(self, inputs: Any) -> Any:
        """Explain what `predict` would answer: the optional outputs `explanation` and `explanation.<name>`, asked for
        by V1's `:explain` or by name. With one such output, the array alone will do."""
        raise NotImplementedError(f"{type(self).__name__} has no explain method")

    def unload(self) -> Any:
        """Let go of what the end of the process would not."""


__all__ = ["Model", "SequencePosition", "TensorSpec"]
