"""Which servers run models for this pod: the JSON file of the setting `runtimes`.

    {
      "triton": {"kind": "triton", "address": "127.0.0.1:8001", "models": "/models", "capacity": "4GiB",
                 "formats": ["tensorflow", "openvino"]},
      "ovms":   {"kind": "modelmesh", "address": "unix:/run/adapter.sock", "inference": "127.0.0.1:9000",
                 "formats": ["openvino_ir"]}
    }

A server's name is a format, too: of artifacts that are laid out as the server wants them (a Triton model directory, an
MLServer directory with `model-settings.json`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from runtime_adapters.registry import adapters

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_RESERVED = frozenset({"cpu", "cuda", "host", "all", "auto"})
"""Devices of this process."""


class InvalidRuntimes(Exception):
    """The file does not say what a pod needs to know; the message says where."""


class RuntimeConfig(BaseModel):
    """One server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["modelmesh", "triton", "mlserver"]
    """`modelmesh`: it speaks ModelMesh's runtime interface. The others: V2 with the repository extension, and the
    directory layout of that server."""
    address: str
    """HOST:PORT or unix:PATH, of its gRPC."""
    inference: str = ""
    """Where models are asked, if not at `address`."""
    formats: tuple[str, ...] = ()
    models: Path | None = None
    """The server's model directory, which this pod fills. Not of kind `modelmesh`."""
    implementations: dict[str, str] = Field(default_factory=dict)
    """MLServer: format to the class that runs it, for artifacts without settings of their own."""
    capacity: ByteSize | None = None
    """Bytes of models. Of kind `modelmesh` the server says it itself."""
    size_factor: float = Field(1.25, gt=0)
    """A copy's bytes by those of its artifact, where the server says nothing better."""
    confined: bool = False
    """What models may do there is the server's business: any may be loaded, not only those of trusted prefixes."""
    start_timeout_s: float = Field(180.0, gt=0)
    """How long a pod waits for the server when it starts."""
    load_timeout_s: float = Field(90.0, gt=0)
    run_timeout_s: float = Field(60.0, gt=0)

    @model_validator(mode="after")
    def _is_whole(self) -> RuntimeConfig:
        if self.kind != "modelmesh":
            if self.models is None:
                raise ValueError("`models` is missing: the directory that the server loads its models from")
            if self.capacity is None:
                raise ValueError("`capacity` is missing: how many bytes of models it may hold, such as 4GiB")
        if unimplemented := self._without_implementation():
            raise ValueError(f"`implementations` says nothing of {', '.join(unimplemented)}")
        return self

    def _without_implementation(self) -> list[str]:
        return [name for name in self.formats if name not in self.implementations] if self.kind == "mlserver" else []


_FILE = TypeAdapter(dict[str, RuntimeConfig])


def parse_runtimes(text: str) -> dict[str, RuntimeConfig]:
    """The servers by name. Raises InvalidRuntimes."""
    try:
        found = _FILE.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidRuntimes(f"{where}: {str(first['msg']).removeprefix('Value error, ')}") from None
    taken: dict[str, str] = dict.fromkeys(adapters(), "this pod itself")
    for name, config in found.items():
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise InvalidRuntimes(f"{name[:40]!r} is no name for a runtime: lower-case letters, digits, - and _")
        for format_name in (name, *config.formats):
            if format_name in taken:
                raise InvalidRuntimes(
                    f"{name}: the format {format_name!r} is loaded by {taken[format_name]}; give it another name"
                )
            taken[format_name] = f"the runtime {name!r}"
    return found
