"""`hexcomb serve`: every setting of a pod as an option, made from the settings class itself.

An option that is not given is left to `HEXCOMB_<NAME>` in the environment, then to the default; the class reads both
and checks the value, so that the command line, the environment and the documentation cannot differ.
"""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Any

import click

from mesh.cli.failure import USAGE, Failure


def build_command() -> click.Command:
    """Reads the settings class; imports nothing of the server."""
    from mesh.settings import Settings, origin_of_default

    prefix = str(Settings.model_config.get("env_prefix", ""))
    options: list[click.Parameter] = []
    for name, field in Settings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        made_from = f" = {origin_of_default(name)}" if field.default_factory is not None else ""
        field_help = f"{field.description}  [default: {_default(field)}{made_from}; env: {prefix}{name.upper()}]"
        if field.annotation is bool:
            options.append(click.Option([f"{flag}/--no-{flag[2:]}", name], default=None, help=field_help))
        else:
            options.append(click.Option([flag, name], metavar=_unit(name, field.annotation), help=field_help))
    return click.Command(
        "serve",
        params=options,
        callback=_serve,
        short_help="Run a pod on this machine.",
        help="Run a pod on this machine until SIGTERM or Ctrl-C.\n\nEvery option can also be set in the environment. "
        "SIZE is in bytes, or with a unit: 512MiB, 2GiB. LIST is separated by commas.",
        context_settings={"max_content_width": 110},
    )


def _serve(**given: Any) -> int:
    from pydantic import ValidationError

    from mesh.settings import Settings
    from runtime_adapters.framework_threads import limit_framework_threads

    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise Failure(
            _settings_error(error), hint="hexcomb serve --help lists every setting", exit_code=USAGE
        ) from None
    limit_framework_threads(settings.model_threads)
    # Imported only now: a wrong option should not cost the import of a server, and NumPy reads what was just set.
    from mesh.node_settings import CannotStart
    from mesh.process import serve
    from mesh.transport.base import CannotListen
    from placement.errors import PlacementError
    from runtime_adapters.errors import AdapterError

    try:
        return serve(settings)
    except (CannotStart, CannotListen, PlacementError, AdapterError) as error:
        raise Failure(str(error)) from error
    except OSError as error:
        if error.filename is None:
            raise
        raise Failure(
            f"{error.filename}: {error.strerror}", hint="--data-dir must be a directory to write in"
        ) from error


def _settings_error(error: Any) -> str:
    from pydantic import SecretStr

    from mesh.settings import Settings

    lines = []
    for detail in error.errors(include_url=False):
        message = str(detail["msg"]).removeprefix("Value error, ")
        if detail["type"].startswith("byte_size"):
            message = "it must be a size in bytes, or with a unit: 512MiB, 2GiB"
        if detail["loc"]:
            name = str(detail["loc"][0])
            flag, variable = "--" + name.replace("_", "-"), "HEXCOMB_" + name.upper()
            field = Settings.model_fields.get(name)
            is_secret = field is not None and SecretStr in _members(field.annotation)
            found = "" if is_secret else f"; found {_shown(detail['input'])}"
            lines.append(f"{flag} ({variable}): {message[:1].lower()}{message[1:]}{found}")
        else:
            lines.append(message)
    return "; ".join(lines)


def _shown(value: Any) -> str:
    """The value that was given, less the password that a store's address may hold."""
    return re.sub("//.*@", "//...@", repr(value))


def _unit(name: str, annotation: Any) -> str:
    from pydantic import ByteSize

    kinds = _members(annotation)
    if typing.Literal in {typing.get_origin(kind) for kind in kinds}:
        choices = next(typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is typing.Literal)
        return "[" + "|".join(str(choice) for choice in choices) + "]"
    if ByteSize in kinds:
        return "SIZE"
    if Path in kinds:
        return "PATH"
    if name.endswith("_s"):
        return "SECONDS"
    if name.endswith("_port"):
        return "PORT"
    if int in kinds:
        return "COUNT"
    if any(typing.get_origin(kind) is tuple for kind in kinds):
        return "LIST"
    return "TEXT"


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    return (annotation,)


def _default(field: Any) -> str:
    from pydantic import ByteSize

    value = field.get_default(call_default_factory=True)
    if isinstance(value, ByteSize):
        return value.human_readable()
    if value is None or value == () or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value)
