"""`hexcomb-controller`: runs the controller until SIGTERM or Ctrl-C, or until it loses its lease.

Every setting is an option, made from the settings class. Exit codes: 0 told to stop; 1 it could not start, or lost its
lease (whoever runs it starts it again); 2 a setting is wrong. No traceback reaches a user.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import typing
from typing import Any

import click
import uvloop
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from controller.cluster_api import CannotConnect, open_cluster
from controller.controller import Controller
from controller.probes import CannotListen, Probes
from controller.settings import Settings
from controller.telemetry import Telemetry

log = logging.getLogger("hexcomb.controller")

FAILED = 1
USAGE = 2


def build_command() -> click.Command:
    """An option per setting."""
    prefix = str(Settings.model_config.get("env_prefix", ""))
    options: list[click.Parameter] = []
    for name, field in Settings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        help_text = f"{field.description}  [default: {_shown_default(field.default)}; env: {prefix}{name.upper()}]"
        if field.annotation is bool:
            options.append(click.Option([f"{flag}/--no-{flag[2:]}", name], default=None, help=help_text))
        else:
            options.append(click.Option([flag, name], metavar=_metavar(name, field.annotation), help=help_text))
    return click.Command(
        "hexcomb-controller",
        params=options,
        callback=_run,
        help="Bring InferenceServices of a Kubernetes cluster onto the mesh, until SIGTERM or Ctrl-C.\n\nEvery option "
        "can also be set in the environment.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )


def main() -> None:
    """The `hexcomb-controller` command."""
    build_command().main()


def _run(**given: Any) -> None:
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        _fail(_settings_error(error), "hexcomb-controller --help lists every setting", USAGE)
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        was_told = uvloop.run(_act(settings))
    except (CannotConnect, CannotListen) as error:
        _fail(str(error), "", FAILED)
    if not was_told:
        _fail("the lease was lost", "another controller acts now, or the API server cannot be reached", FAILED)


async def _act(settings: Settings) -> bool:
    """Whether it was told to stop. Raises CannotConnect, CannotListen."""
    telemetry = Telemetry(CollectorRegistry())
    stop_wanted = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop_wanted.set)
    async with await open_cluster(settings.kubeconfig, settings.context, telemetry.called) as api:
        controller = Controller(settings, api, telemetry)
        probes = Probes(settings.host, settings.http_port, telemetry.registry, controller.why_unready)
        port = probes.start()
        if settings.ready_file is not None:
            partial = settings.ready_file.with_suffix(".partial")
            partial.write_text(json.dumps({"http_port": port, "pid": os.getpid()}))
            partial.replace(settings.ready_file)
        acting = asyncio.create_task(controller.run())
        stopping = asyncio.create_task(stop_wanted.wait())
        try:
            await asyncio.wait({acting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if acting.done():
                await acting
            return stop_wanted.is_set()
        finally:
            for task in (acting, stopping):
                task.cancel()
            await asyncio.gather(acting, stopping, return_exceptions=True)
            await controller.close()
            await probes.stop()


def _fail(message: str, hint: str, code: int) -> typing.NoReturn:
    sys.stderr.write(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))
    sys.exit(code)


def _settings_error(error: ValidationError) -> str:
    lines = []
    for detail in error.errors(include_url=False):
        name = str(detail["loc"][0]) if detail["loc"] else ""
        message = str(detail["msg"])
        lines.append(f"--{name.replace('_', '-')}: {message[:1].lower()}{message[1:]}; found {detail['input']!r}")
    return "; ".join(lines)


def _shown_default(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, "") else str(value)


def _metavar(name: str, annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return "[" + "|".join(str(choice) for choice in typing.get_args(annotation)) + "]"
    if name.endswith("_s"):
        return "SECONDS"
    if name.endswith("_port"):
        return "PORT"
    return "COUNT" if annotation is int else "TEXT"


if __name__ == "__main__":
    main()
