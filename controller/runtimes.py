"""Which ServingRuntime runs a model: KServe's rules, in KServe's order, with a reason for each "no".

A runtime that the object names is looked up in its namespace, then in the cluster, and must be: 1. there; 2. not
disabled; 3. of the right kind (`multiModel` for the mesh, not for pods of its own); 4. able to speak the protocol, if
the object says one; 5. for this format and version. `autoSelect` does not matter then.

Without a name, the candidates are those with all of these whose entry for the format has `autoSelect`. The order:
1. those of the namespace before those of the cluster; 2. within each, the higher priority of the first entry of that
format (none comes last); 3. the oldest protocol (v1, v2, grpc-v1, grpc-v2, none said); 4. the youngest; 5. the name.

A version matches by its text alone: an object without one takes any version, and `1.0` is not `1`.

Where KServe differs from what it says: it looks for runtimes with `multiModel: false` even for the mesh, and its third
and fourth criteria decide before the second where priorities are equal, which is the same order written the other way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from controller.reading import InvalidField, Manifest, Part
from controller.service_view import PROTOCOLS, Model


@dataclass(frozen=True, slots=True)
class Format:
    """An entry of `supportedModelFormats`."""

    name: str
    version: str
    auto_select: bool
    priority: int | None


@dataclass(frozen=True, slots=True)
class Runtime:
    """A ServingRuntime, or a ClusterServingRuntime."""

    name: str
    of_cluster: bool
    created: str
    """RFC 3339, so that later is greater."""
    disabled: bool
    multi_model: bool
    protocols: tuple[str, ...]
    """Empty: any."""
    formats: tuple[Format, ...]
    has_workers: bool
    spec: Part


@dataclass(frozen=True, slots=True)
class NoRuntime:
    """`reason` is one of the status's, and `message` says what was looked at."""

    reason: str
    message: str


def read_runtime(manifest: Manifest, of_cluster: bool) -> Runtime:
    """Raises InvalidField."""
    whole = Part(manifest, "")
    metadata, spec = whole.part("metadata"), whole.part("spec")
    return Runtime(
        name=metadata.text("name"),
        of_cluster=of_cluster,
        created=metadata.text("creationTimestamp"),
        disabled=spec.flag("disabled"),
        multi_model=spec.flag("multiModel"),
        protocols=spec.words("protocolVersions"),
        formats=tuple(
            Format(entry.text("name"), entry.text("version"), entry.flag("autoSelect"), entry.whole("priority"))
            for entry in spec.parts("supportedModelFormats")
        ),
        has_workers=spec.has("workerSpec"),
        spec=spec,
    )


def readable(of_namespace: Iterable[Manifest], of_cluster: Iterable[Manifest]) -> tuple[Runtime, ...]:
    """All that can be read. One that cannot is no runtime for anybody, and must not stop the others' services."""
    found: list[Runtime] = []
    for manifests, cluster_wide in ((of_namespace, False), (of_cluster, True)):
        for manifest in manifests:
            try:
                found.append(read_runtime(manifest, cluster_wide))
            except InvalidField:
                continue
    return tuple(found)


def choose_runtime(
    model: Model, runtimes: tuple[Runtime, ...], multi_model: bool, with_workers: bool = False
) -> Runtime | NoRuntime:
    """The runtime for a model on the mesh (`multi_model`) or in pods of its own."""
    if model.runtime:
        return _named(model, runtimes, multi_model)
    candidates = [
        runtime for runtime in runtimes if _unfit(model, runtime, multi_model, with_workers, automatic=True) is None
    ]
    if candidates:
        return min(candidates, key=lambda runtime: _order(runtime, model.format))
    seen = [
        f"{runtime.name} ({_unfit(model, runtime, multi_model, with_workers, automatic=True)})" for runtime in runtimes
    ]
    shown = "; ".join(sorted(seen)[:5]) + ("; ..." if len(seen) > 5 else "")
    return NoRuntime(
        "NoSupportingRuntime",
        f"no runtime found to support {_wanted(model)} over protocol {model.protocol_or_default}; "
        + (f"looked at {shown}" if seen else "there are no ServingRuntimes"),
    )


def _named(model: Model, runtimes: tuple[Runtime, ...], multi_model: bool) -> Runtime | NoRuntime:
    named = [runtime for runtime in runtimes if runtime.name == model.runtime]
    if not named:
        return NoRuntime(
            "RuntimeNotRecognized",
            f"{model.where}.runtime: waiting for runtime {model.runtime!r} to become available; there is no "
            "ServingRuntime in this namespace and no ClusterServingRuntime of this name",
        )
    runtime = min(named, key=lambda found: found.of_cluster)
    if runtime.disabled:
        return NoRuntime("RuntimeDisabled", f"{model.where}.runtime: runtime {runtime.name!r} is disabled")
    unfit = _unfit(model, runtime, multi_model, runtime.has_workers, automatic=False)
    if unfit is not None:
        return NoRuntime(
            "NoSupportingRuntime", f"{model.where}.runtime: {runtime.name!r} does not support this model: {unfit}"
        )
    return runtime


def _unfit(model: Model, runtime: Runtime, multi_model: bool, with_workers: bool, automatic: bool) -> str | None:
    """Why not, or None."""
    if runtime.disabled:
        return "disabled"
    if runtime.multi_model != multi_model:
        return "multiModel: true" if runtime.multi_model else "not multiModel"
    if runtime.has_workers != with_workers:
        return "has workerSpec" if runtime.has_workers else "has no workerSpec"
    protocol = model.protocol_or_default if automatic else model.protocol
    if protocol and runtime.protocols and protocol not in runtime.protocols:
        return f"speaks {', '.join(runtime.protocols)}, not {protocol}"
    entries = [entry for entry in runtime.formats if entry.name == model.format]
    if not entries:
        return f"not for {model.format}"
    if model.version and all(entry.version != model.version for entry in entries):
        return f"not for {_wanted(model)}"
    if automatic and not any(entry.auto_select for entry in entries if _same_version(model, entry)):
        return "not autoSelect"
    return None


def _same_version(model: Model, entry: Format) -> bool:
    return not model.version or entry.version == model.version


def _order(runtime: Runtime, model_format: str) -> tuple[bool, int, int, tuple[int, ...], str]:
    # 1. of the namespace; 2. the higher priority, none last; 3. the oldest protocol; 4. the youngest; 5. the name.
    priority = next((entry.priority for entry in runtime.formats if entry.name == model_format), None)
    rank = min((_rank(protocol) for protocol in runtime.protocols), default=len(PROTOCOLS))
    youngest = tuple(-ord(letter) for letter in runtime.created)
    return (runtime.of_cluster, -priority if priority is not None else 1, rank, youngest, runtime.name)


def _rank(protocol: str) -> int:
    return PROTOCOLS.index(protocol) if protocol in PROTOCOLS else len(PROTOCOLS)


def _wanted(model: Model) -> str:
    return f"{model.format} version {model.version}" if model.version else model.format
