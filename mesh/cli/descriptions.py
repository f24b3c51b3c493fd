"""What the server says of models, as JSON values and as cells of a table. No effects, no network."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict

from mesh.cli.sizes import show_age, show_size
from mesh.wire.generated import hexcomb_pb2

_MODEL_HEADINGS = ("name", "format", "state", "gen", "size", "copies", "last used", "failure")
MODEL_NUMBERS = ("gen", "size", "copies")
_FAILURE_SHOWN_CHARACTERS = 60


def model_headings() -> tuple[str, ...]:
    """Of `models list`."""
    return _MODEL_HEADINGS


def state_name(state: int) -> str:
    """`LOADED` -> `loaded`."""
    name: str = hexcomb_pb2.ModelState.Name(state)
    return "unknown" if name == "MODEL_STATE_UNSPECIFIED" else name.lower().replace("_", " ")


def copy_bytes(copy: Any) -> int:
    """All bytes of one copy, wherever they lie."""
    return int(copy.host_bytes + copy.mapped_bytes + copy.device_bytes)


def model_row(model: Any, now_s: float) -> list[str]:
    """One line of `models list`."""
    used_ms = max((copy.last_used_ms for copy in model.copies), default=0)
    size = max((copy_bytes(copy) for copy in model.copies), default=0)
    about = "" if all(copy.measured for copy in model.copies) else "~"
    failure = model.failure.message if model.HasField("failure") else ""
    return [
        model.id,
        model.format or model.spec.format or "?",
        state_name(model.state),
        str(model.generation),
        f"{about}{show_size(size)}" if size else "-",
        str(len(model.copies)),
        f"{show_age(now_s - used_ms / 1000)} ago" if used_ms else "-",
        failure[:_FAILURE_SHOWN_CHARACTERS],
    ]


def model_details(model: Any, now_s: float) -> list[tuple[str, str]]:
    """Everything of `models show`, line by line."""
    spec = model.spec
    lines = [
        ("name", model.id),
        ("tenant", model.tenant),
        ("state", state_name(model.state)),
        ("generation", str(model.generation)),
        ("format", model.format or spec.format or "found when the artifact is fetched"),
        ("uri", spec.uri),
        ("registered", f"{show_age(now_s - model.registered_at_ms / 1000)} ago" if model.registered_at_ms else "-"),
    ]
    if spec.HasField("capacity_hint_bytes"):
        lines.append(("capacity hint", show_size(spec.capacity_hint_bytes)))
    lines += [
        (label, value)
        for label, value in (
            ("storage key", spec.storage_key),
            ("checksum", spec.checksum),
            ("isolation", spec.isolation),
            ("priority", str(spec.priority) if spec.priority else ""),
            ("pinned", "yes" if spec.pinned else ""),
            ("ttl", f"{spec.ttl_s:g} s" if spec.HasField("ttl_s") else ""),
            ("load timeout", f"{spec.load_timeout_s:g} s" if spec.HasField("load_timeout_s") else ""),
            ("batch rows", f"at most {spec.batch_rows_max}" if spec.HasField("batch_rows_max") else ""),
            ("batch delay", f"{spec.batch_delay_s:g} s" if spec.HasField("batch_delay_s") else ""),
            ("labels", _pairs(spec.labels)),
            ("parameters", _pairs(spec.parameters)),
            ("aliases", ", ".join(model.aliases)),
        )
        if value
    ]
    for copy in model.copies:
        measured = "measured" if copy.measured else "estimated"
        behind = f"generation {copy.generation}, " if copy.generation != model.generation else ""
        used = f", used {show_age(now_s - copy.last_used_ms / 1000)} ago" if copy.last_used_ms else ""
        state = f"{state_name(copy.state)}, {copy.form}," if copy.form else state_name(copy.state)
        took = f", loaded in {copy.load_s * 1000:.1f} ms" if copy.load_s else ""
        lines.append(
            (
                f"copy on {copy.pod}",
                f"{behind}{state} on {copy.device or '?'}, {show_size(copy_bytes(copy))} {measured}"
                f"{took}{used}, {copy.requests_in_flight} in flight",
            )
        )
        if copy.batching:
            lines.append((f"batched on {copy.pod}", copy.batching))
    if model.suspicion:
        lines.append(("suspicion", model.suspicion))
    failures = model.failures or ([model.failure] if model.HasField("failure") else [])
    return lines + [_failure_line(failure, now_s) for failure in failures]


def _failure_line(failure: Any, now_s: float) -> tuple[str, str]:
    again = "not tried again until it is registered again or released"
    if not failure.permanent:
        again = f"tried again in {max(0.0, failure.retry_at_ms / 1000 - now_s):.0f} s"
    tries = "" if not failure.attempts else "; 1 try" if failure.attempts == 1 else f"; {failure.attempts} tries"
    return (f"failure on {failure.pod or 'every pod'}", f"{failure.message} ({again}{tries})")


def to_json(message: Any) -> dict[str, Any]:
    """A message under its field names. 64-bit numbers stay numbers, which protobuf's own JSON writes as text."""
    values: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _with_numbers(message, values)


def _with_numbers(message: Any, values: dict[str, Any]) -> dict[str, Any]:
    for field in message.DESCRIPTOR.fields:
        if field.name not in values:
            continue
        value = values[field.name]
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            inner = getattr(message, field.name)
            values[field.name] = (
                [_with_numbers(one, each) for one, each in zip(inner, value, strict=True)]
                if isinstance(value, list)
                else _with_numbers(inner, value)
            )
        elif field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64) and isinstance(value, str):
            values[field.name] = int(value)
        elif field.enum_type is not None and field.enum_type.name == "ModelState" and isinstance(value, str):
            values[field.name] = "unknown" if value == "MODEL_STATE_UNSPECIFIED" else value.lower()
    return values


def _pairs(values: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items()))
