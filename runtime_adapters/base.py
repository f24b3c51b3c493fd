"""The seam between the mesh and the frameworks: one small protocol, one file per framework behind it.

An adapter answers, for its format: is this artifact mine, what does it take, load it, and run it. Everything
about *when* to load or evict lies elsewhere; everything about *how* lies here.

Tensors cross the seam as NumPy arrays keyed by name, one dtype per V2 datatype (`runtime_adapters.datatypes`);
BYTES is an object array of `bytes`. An adapter never sees protobuf, and never blocks an event loop: all calls
here are blocking and are made on worker threads. `infer` may be called from several threads at once.

Two kinds of preparation are kept apart:

* `prepare` runs once per content hash and runtime version: it turns the fetched artifact into the form that loads
  fastest (offline-optimised ONNX with external data, XGBoost JSON -> UBJ). Its result lives in the artifact cache.
* `load` runs on each load, from the prepared form if there is one.

Where an adapter can (`LoadsAsFetched`), the first load does not wait for `prepare`: it takes the artifact as it was
fetched, and the model goes on as its prepared form (`Replaceable`) once that was made beside it.

Deliberately absent: batching across requests, retries, metrics, time. They belong to the caller.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = Mapping[str, Array]

DYNAMIC = -1
"""A dimension of any size, as in the V2 protocol's metadata."""
EXPLANATION = "explanation"
"""The optional output by which a model explains itself; further ones are called `explanation.<name>`. V1's `:explain`
asks for these. Of a tree model: what each feature contributed to the row's value before the objective's
transformation, by TreeSHAP, exactly, and the value that all rows begin with in the last column."""
V1_BODY = "v1_body"
"""An input of BYTES [1] that stands for all others: the body of a V1 request, for a model that reads it itself. The
output of this name is the body of its answer, and of `:explain` the explanation of this name."""
SHARED_FORM = "shared"
"""The directory of a prepared form whose files are named by the SHA-256 of their bytes. Whoever keeps prepared forms
may store equal ones once; such a file is never written to again."""


def is_explanation(name: str) -> bool:
    """Whether an output explains another one."""
    return name == EXPLANATION or name.startswith(f"{EXPLANATION}.")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output as the V2 metadata shows it. `shape` holds -1 for a dimension of any size.

    `optional` inputs may be left out; `optional` outputs are computed only when asked for by name.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a client may know of a model: names, V2 datatypes, shapes.

    `any_input_name`: a tabular model with one required input takes it under whatever name the client sent.
    `batch_dimension`: dimension 0 of every input and output counts rows that do not influence one another.
    `batch_rows_max`: the most rows that one run takes well; None: no limit that is known. Requests are refused by none.
    """

    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    any_input_name: bool = False
    batch_dimension: bool = False
    batch_rows_max: int | None = None
    unchecked: bool = False
    """What it takes is known to whoever runs it alone, a server beside the pod or its own code, and checked there."""
    decoupled: bool = False
    """A request may have any number of answers, none included: the model is `Streaming`."""
    sequences: bool = False
    """It keeps something from one request of a sequence to the next: SEQUENCE_CONTROLS come with each."""


SEQUENCE_ID, SEQUENCE_START, SEQUENCE_END = "sequence_id", "sequence_start", "sequence_end"
SEQUENCE_CONTROLS = (
    TensorSpec(SEQUENCE_ID, "BYTES", (1,)),
    TensorSpec(SEQUENCE_START, "BOOL", (1,)),
    TensorSpec(SEQUENCE_END, "BOOL", (1,)),
)
"""Inputs of models with `sequences`, beside those of their metadata: which sequence a request belongs to, and whether
it is the first or the last of it."""


class Trust(Enum):
    """May loading this artifact run code?"""

    SAFE = "safe"
    """Loading reads data only."""
    RUNS_CODE = "runs-code"
    """Loading may run code from the artifact: trusted prefixes, or the jailed subprocess, only."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where a copy lives. `kind` is `cpu` or `cuda`; `index` counts devices of that kind in this pod."""

    kind: str = "cpu"
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


CPU = Device()


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes that a copy takes, by where they lie. `mapped_bytes` are file pages mapped into this process.

    Mapped bytes count in full (`host_bytes` does not include them).
    """

    host_bytes: int
    mapped_bytes: int = 0
    device_bytes: int = 0
    shared: tuple[tuple[str, int], ...] = ()
    """The part of `mapped_bytes` that other copies on this pod may map as well: content and its bytes, each content
    once. Copies that name the same content map the same pages, so a ledger may count them once."""

    @property
    def total_bytes(self) -> int:
        """All bytes on the device tier of a CPU pod: RAM and mapped file pages."""
        return self.host_bytes + self.mapped_bytes + self.device_bytes


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What a load may use. `parameters` are the spec's own, as strings; an unknown one is a BadArtifact."""

    model_id: str
    device: Device = CPU
    threads: int = 1
    trusted: bool = False
    """The artifact came from a storage prefix that the operator marked trusted."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    packages: Path | None = None
    """A directory of Python packages that go before the pod's own, for a model that asked for them."""
    as_fetched: bool = False
    """Load what was fetched, which `LoadsAsFetched` allowed, to answer soon: its prepared form comes after it."""


@runtime_checkable
class LoadedModel(Protocol):
    """A servable copy in this process (or a handle on one in a subprocess)."""

    @property
    def metadata(self) -> ModelMetadata:
        """Names, datatypes, shapes; constant while loaded."""

    def warm_up(self) -> None:
        """Run once on zeros (dynamic dimensions as 1) so that the first client does not pay for lazy set-up.

        A model that rejects zeros is not thereby broken: adapters swallow what the model itself raises here.
        """

    def infer(self, inputs: Tensors, outputs: Sequence[str] = ()) -> dict[str, Array]:
        """Run the model. `outputs` names what is wanted; empty means every output that is not optional.

        Inputs have been checked against `metadata` by `runtime_adapters.validation.check_inputs`.
        Raises BadInput (the framework refuses the values), ModelRaised, OutOfMemory, ModelCrashed.
        """

    def size(self) -> Size:
        """Bytes this copy takes now, as exactly as the framework lets one know. Cheap: no run, no copy."""

    def unload(self) -> None:
        """Free everything. Idempotent. No `infer` runs when this is called, and none is made after."""


@runtime_checkable
class Streaming(Protocol):
    """A loaded model whose answers to one request come one after the other."""

    def infer_stream(self, inputs: Tensors, outputs: Sequence[str] = ()) -> Generator[dict[str, Array], None, None]:
        """As `infer`, for a model that is `decoupled`. Each step blocks until there is an answer; closing it ends the
        run."""


@runtime_checkable
class Promotable(Protocol):
    """A loaded model that can trade memory for speed, and back, while it serves.

    Both changes block, and may be asked for again at any time: what is so already stays so. While one runs, both forms
    are in memory; when it returns, only the new one is, and `size()` says what that takes. A failed change (the
    adapter's errors) leaves the model as it was. `unload` waits for a change that has begun.
    """

    @property
    def is_hot(self) -> bool:
        """Whether it runs as fast as its framework can, in memory of its own."""

    def hot_size(self) -> Size | None:
        """What the fast form takes; None when there is only one form."""

    def promote(self) -> None:
        """Become hot."""

    def demote(self) -> None:
        """Become cold again."""


@runtime_checkable
class Replaceable(Protocol):
    """A loaded model that another one of the same artifact can take the place of while it serves."""

    def go_on_as(self, prepared: LoadedModel) -> None:
        """Runs that begin from now on are those of `prepared`, which is this model's own then: nobody else runs or
        unloads it. Blocks until the last run on what was loaded before has ended, and that is freed. Where their
        metadata differ: LoadFailed, and both are as they were."""


class ParkedModel(Protocol):
    """A model that left its device and lies in RAM, one copy away from serving."""

    def size(self) -> Size:
        """What it takes there; `device_bytes` is zero."""

    def unpark(self, device: Device) -> LoadedModel:
        """The model, on the device that it left, ready to run; the parked one is gone then. Blocks. Raises
        AdapterError: then it is as it was."""

    def unload(self) -> None:
        """Free everything. Idempotent."""


@runtime_checkable
class Parkable(Protocol):
    """A loaded model that can leave its device for RAM and come back without being loaded anew.

    Between two places in RAM that works as well, so that it can be tried without a GPU; it is worth nothing there, and
    whoever orders it knows.
    """

    def parked_size(self) -> Size | None:
        """What it would take in RAM; None when it cannot be parked."""

    def park(self) -> ParkedModel:
        """Move it; blocks. No `infer` runs when this is called; one that is made on it after raises AdapterError.
        Raises AdapterError: then it is as it was."""


class RuntimeAdapter(Protocol):
    """One framework."""

    format: str
    """The name used in specs: `onnx`, `xgboost`, `lightgbm`, `sklearn`, `torch`, `python`, ..."""
    trust: Trust
    device_kinds: tuple[str, ...]
    """Kinds of device that the framework runs on, of `Device.kind`; on any pod the CPU is among them."""
    extra: str
    """The optional dependency of the hexcomb distribution that installs the framework."""

    def runtime_version(self) -> str:
        """`onnxruntime-1.31.1`: part of the key of prepared artifacts. Raises MissingRuntime."""

    def detect(self, artifact: Path) -> bool:
        """Is this artifact (a file, or a directory) of this format? Looks at content, imports nothing heavy."""

    def estimate(self, artifact: Path, options: LoadOptions) -> Size:
        """Size of the loaded copy from the artifact alone, before loading. Raises BadArtifact."""

    def prepare(self, artifact: Path, into: Path, options: LoadOptions) -> bool:
        """Write the form that loads fastest into the empty directory `into`; False if there is none better.

        Called once per content hash, format and runtime version. A form is complete: it loads without the artifact.
        What other models may have as well goes into files under SHARED_FORM. Raises BadArtifact, UntrustedArtifact.
        """

    def load(self, artifact: Path, options: LoadOptions) -> LoadedModel:
        """Load from `artifact`: the fetched one, or the directory that `prepare` filled.

        Raises BadArtifact, UntrustedArtifact, LoadFailed, OutOfMemory, MissingRuntime.
        """


@runtime_checkable
class LoadsAsFetched(Protocol):
    """An adapter whose models may answer before they are prepared. Those are `Replaceable`."""

    def size_as_fetched(self, artifact: Path, options: LoadOptions) -> Size | None:
        """What a load with `as_fetched` takes, estimated, where it is as safe as one of the prepared form, and sooner
        there than `prepare` is; else None. Raises BadArtifact."""


class Reading(Protocol):
    """An artifact of one file, read while it comes, so that there is little left to do once its last byte is here."""

    def take(self, piece: bytes) -> None:
        """The next bytes of the file. Raises nothing: what is wrong with them is told by `prepare`."""

    def prepare(self, into: Path, options: LoadOptions) -> bool:
        """What `RuntimeAdapter.prepare` would do with the file, all of which was taken. May be called again."""

    def size(self) -> Size:
        """What `RuntimeAdapter.estimate` would say of what `prepare` has written, or of the file."""


@runtime_checkable
class ReadsWhileFetched(Protocol):
    """An adapter that can begin to prepare a file before it is whole."""

    def reading(self) -> Reading:
        """Of one file, from its beginning. Cheap; imports nothing heavy."""


__all__ = [
    "CPU",
    "DYNAMIC",
    "EXPLANATION",
    "SEQUENCE_CONTROLS",
    "SEQUENCE_END",
    "SEQUENCE_ID",
    "SEQUENCE_START",
    "SHARED_FORM",
    "V1_BODY",
    "Array",
    "Device",
    "LoadOptions",
    "LoadedModel",
    "LoadsAsFetched",
    "ModelMetadata",
    "Parkable",
    "ParkedModel",
    "Promotable",
    "Reading",
    "ReadsWhileFetched",
    "Replaceable",
    "RuntimeAdapter",
    "Size",
    "Streaming",
    "TensorSpec",
    "Tensors",
    "Trust",
    "is_explanation",
]
