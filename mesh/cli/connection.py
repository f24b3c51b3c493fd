"""Reaching a pod: the options that every command has, and the client's errors in an operator's words.

`--endpoint`, `--tenant`, `--json` and `--timeout` are the same everywhere. An error of the server is passed on in the
server's words, which name the model and the next step; what is added here is only what the command line knows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mesh.cli.failure import FAILED, UNREACHABLE, USAGE, Failure

if TYPE_CHECKING:
    from mesh.client.client import Client
    from mesh.client.errors import HexcombError

DEFAULT_ENDPOINT = "127.0.0.1:8033"
_DEFAULT_TIMEOUT_S = 60.0
_TIMEOUT_MAX_S = 86_400.0
"""A day; what is longer is a slip of the pen."""
_ATTEMPTS_MAX = 2
"""A person who waits would rather be told."""
_NOT_REACHED = "cannot reach "
"""How the client begins when no connection came about; a server's own UNAVAILABLE reads otherwise."""

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Target:
    """Where a command goes, and how it answers."""

    endpoint: str
    tenant: str
    as_json: bool
    timeout_s: float


def target_options(command: Command) -> Command:
    """Add the options; the command gets them as one `target`."""

    def gather(*, endpoint: str, tenant: str, as_json: bool, timeout: float, **rest: Any) -> Any:
        return command(target=Target(endpoint, tenant, as_json, timeout), **rest)

    gather.__name__ = command.__name__
    gather.__doc__ = command.__doc__
    wrapped: Any = gather
    if hasattr(command, "__click_params__"):
        wrapped.__click_params__ = command.__click_params__
    for option in (
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True, max=_TIMEOUT_MAX_S),
            default=_DEFAULT_TIMEOUT_S,
            metavar="SECONDS",
            show_default=True,
            help="Give up after so long.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--tenant", default="", metavar="NAME", envvar="HEXCOMB_TENANT", help="Act for this tenant."),
        click.option(
            "--endpoint",
            default=DEFAULT_ENDPOINT,
            metavar="HOST:PORT[,...]",
            envvar="HEXCOMB_ENDPOINT",
            show_default=True,
            show_envvar=True,
            help="gRPC address of a pod, or of several: one that answers is asked.",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


@contextlib.contextmanager
def connected(
    target: Target,
    not_found_hint: str = "`hexcomb models list` shows what is registered",
    precondition_hint: str = "",
) -> Iterator[Client]:
    """A client for the time of a command; its errors become Failures, with the hints for their codes."""
    from mesh.client.endpoints import parse_endpoints

    try:
        addresses = parse_endpoints(target.endpoint)
    except ValueError as error:
        raise Failure(f"--endpoint: {error}", exit_code=USAGE) from None
    for address in addresses:
        _check_address(address)
    from mesh.client.client import Client
    from mesh.client.errors import HexcombError
    from mesh.client.retries import RetryPolicy

    try:
        client = Client(
            target.endpoint,
            tenant=target.tenant or None,
            timeout_s=target.timeout_s,
            retry=RetryPolicy(attempts_max=_ATTEMPTS_MAX),
        )
    except ValueError as error:
        raise Failure(f"--tenant: {error}", exit_code=USAGE) from error
    try:
        with client:
            yield client
    except HexcombError as error:
        hints = {"NOT_FOUND": not_found_hint, "FAILED_PRECONDITION": precondition_hint}
        raise _as_failure(error, target, hints) from error


def _check_address(address: str) -> None:
    host, separator, port = address.rpartition(":")
    is_socket = address.startswith("unix:")
    if not is_socket and (not separator or not host or not port.isdigit() or int(port) > 65535):
        raise Failure(
            f"--endpoint: {address!r} is not HOST:PORT",
            hint=f"for instance {DEFAULT_ENDPOINT}, or several with commas between them",
            exit_code=USAGE,
        )


def _as_failure(error: HexcombError, target: Target, hints: Mapping[str, str]) -> Failure:
    code = error.status.name
    if code == "UNAVAILABLE" and error.message.startswith(_NOT_REACHED):
        return Failure(
            f"no server answers at {target.endpoint}",
            hint="start one with `hexcomb serve`, or say where it is with --endpoint HOST:PORT or HEXCOMB_ENDPOINT",
            exit_code=UNREACHABLE,
            code=code,
        )
    hint = hints.get(code, "")
    if code == "DEADLINE_EXCEEDED":
        hint = f"--timeout is {target.timeout_s:g} s; give more if the server at {target.endpoint} is well"
    elif not hint and error.retry_after_s is not None:
        hint = f"the server asks to try again in {error.retry_after_s:g} s"
    return Failure(error.message, hint=hint, exit_code=FAILED, code=code)
