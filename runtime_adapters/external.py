"""Models that a server beside the pod runs: Triton, MLServer, whatever speaks ModelMesh's runtime interface.

The server runs in a process, or a container, of its own. The pod decides what it loads and when, as with models of its
own; the server loads, runs and unloads on the pod's word. For the pod such a server is a device: it has a capacity of
its own in the ledger, its copies lie there, and nothing of them lies in this process.

How a server is spoken to is behind `RuntimeLink`, so this file knows no protocol. Every copy has a name of its own in
the server: while a model is replaced, two of its generations are loaded.

A server that died has lost its models. Whoever notices says so (`RuntimeLink.lost`), and copies from before that are
gone: their runs raise ModelCrashed, which has them loaded again, and to unload them costs nothing.

Deliberately absent: starting servers, preparing artifacts for them (`RuntimeLink` lays them out), and parking.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runtime_adapters.base import Array, Device, LoadOptions, ModelMetadata, Size, Tensors, Trust
from runtime_adapters.errors import ModelCrashed

RUNS_MAX = 16
"""Of one model at a time, where its server names no limit: enough for a server that makes batches of its own."""
_NAME_CHARACTERS_MAX = 80
_OURS = re.compile(r".*-[0-9a-f]{8}-[0-9]+")

_ordinals = itertools.count(1)
"""Of copies, in this process."""


@dataclass(frozen=True, slots=True)
class ToLoad:
    """A model as its server is told of it."""

    name: str
    """In the server; this copy's alone."""
    format: str
    artifact: Path
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LoadedThere:
    """What a server said of a load. `size_bytes` 0: nothing. `runs_max`: at a time; 0: no limit."""

    size_bytes: int
    runs_max: int
    metadata: ModelMetadata


class RuntimeLink(Protocol):
    """A server that runs models. All calls block, and may come from several threads."""

    @property
    def name(self) -> str:
        """As the pod's settings call it."""

    @property
    def version(self) -> str:
        """The server's own word; it names no whitespace."""

    @property
    def losses(self) -> int:
        """How often it was found to have lost its models."""

    def size_before(self, model: ToLoad) -> int:
        """Bytes that a copy is expected to take there."""

    def load(self, model: ToLoad) -> LoadedThere:
        """Returns when the model can be asked. Raises BadArtifact, LoadFailed, OutOfMemory; nothing of it remains."""

    def unload(self, name: str) -> None:
        """Returns when the server has let go of it. One that it does not have is no error. Raises LoadFailed."""

    def infer(self, name: str, inputs: Tensors, outputs: Sequence[str]) -> dict[str, Array]:
        """Run a model. Raises BadInput, ModelRaised, OutOfMemory, ModelCrashed: the server has lost it."""

    def relay(self, name: str, method: str, message: bytes, timeout_s: float | None) -> bytes:
        """Ask a model by a method of the server's own; the message is its own, too. Raises as `infer`."""


class ExternalModel:
    """A copy in a server beside the pod."""

    def __init__(self, link: RuntimeLink, name: str, loaded: LoadedThere, size_bytes: int) -> None:
        self._link = link
        self._name = name
        self._losses = link.losses
        self._size_bytes = size_bytes
        self._unloaded = False
        self.metadata = loaded.metadata
        self.runs_max = loaded.runs_max or RUNS_MAX

    @property
    def runtime(self) -> str:
        """Whose it is."""
        return self._link.name

    @property
    def is_lost(self) -> bool:
        """Its server has lost its models since it was loaded."""
        return self._link.losses != self._losses

    def warm_up(self) -> None:
        """The server's own business."""

    def infer(self, inputs: Tensors, outputs: Sequence[str] = ()) -> dict[str, Array]:
        self._check_here()
        return self._link.infer(self._name, inputs, outputs)

    def relay(self, method: str, message: bytes, timeout_s: float | None) -> bytes:
        """Ask it by a method of its server's own."""
        self._check_here()
        return self._link.relay(self._name, method, message, timeout_s)

    def size(self) -> Size:
        return Size(host_bytes=0, device_bytes=self._size_bytes)

    def unload(self) -> None:
        if not self._unloaded and not self.is_lost:
            self._link.unload(self._name)
        self._unloaded = True

    def _check_here(self) -> None:
        if self.is_lost or self._unloaded:
            raise ModelCrashed(f"runtime {self._link.name!r} has lost its models; this copy is gone, load it again")


class ExternalAdapter:
    """One format, loaded by one server."""

    def __init__(self, format_name: str, link: RuntimeLink, *, confined: bool) -> None:
        """`confined`: what models may do there is the server's own business, so that any may be loaded."""
        self.format = format_name
        self.trust = Trust.SAFE if confined else Trust.RUNS_CODE
        self.device = Device(link.name)
        self.device_kinds: tuple[str, ...] = (link.name,)
        self.extra = ""
        self.link = link

    def runtime_version(self) -> str:
        return self.link.version

    def detect(self, artifact: Path) -> bool:
        """Never: a format that a server reads has to be named."""
        return False

    def estimate(self, artifact: Path, options: LoadOptions) -> Size:
        model = ToLoad(_server_name(options.model_id, 0), self.format, artifact, options.parameters)
        return Size(host_bytes=0, device_bytes=self.link.size_before(model))

    def prepare(self, artifact: Path, into: Path, options: LoadOptions) -> bool:
        return False

    def load(self, artifact: Path, options: LoadOptions) -> ExternalModel:
        name = _server_name(options.model_id, next(_ordinals))
        model = ToLoad(name, self.format, artifact, options.parameters)
        expected_bytes = self.link.size_before(model)
        loaded = self.link.load(model)
        return ExternalModel(self.link, name, loaded, loaded.size_bytes or expected_bytes)


def _server_name(model_id: str, ordinal: int) -> str:
    """Readable, and fit to be a directory's name on any server. Two ids that look alike differ in their digests."""
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", model_id)[:_NAME_CHARACTERS_MAX]
    digest = hashlib.sha256(model_id.encode()).hexdigest()[:8]
    return f"{readable}-{digest}-{ordinal}"


def is_server_name(name: str) -> bool:
    """Whether a name in a server was made here, by this process or by one before it."""
    return _OURS.fullmatch(name) is not None


def bytes_on_disk(artifact: Path) -> int:
    """Of a file, or of all files of a directory."""
    if artifact.is_file():
        return artifact.stat().st_size
    return sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file())
