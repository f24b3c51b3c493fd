"""The README's commands, run as they stand there, in order, in one shell, in an empty directory.

A block after `<!-- run -->` is run; other blocks are not commands of a quickstart (`make demo` has its own test). Only
the ports differ: the text 8033 and 8008 is replaced by free ones, since this machine may have a pod already.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mesh.cli.main import cli

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"<!-- run -->\n```(?P<language>bash|python)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
TIMEOUT_S = 170


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def script() -> str:
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for block in BLOCK.finditer(README.read_text()):
        if block["language"] == "python":
            lines += ["python3 - <<'END_OF_PYTHON'", block["text"], "END_OF_PYTHON"]
        else:
            lines.append(block["text"])
    return "\n".join(lines)


@pytest.mark.slow
def test_the_commands_of_the_readme_run_as_they_stand(tmp_path: Path) -> None:
    pytest.importorskip("tritonclient")
    grpc_port, http_port = free_ports(2)
    text = script().replace("8033", str(grpc_port)).replace("8008", str(http_port))
    commands = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "HEXCOMB_GRPC_PORT": str(grpc_port),
        "HEXCOMB_HTTP_PORT": str(http_port),
        "HEXCOMB_ENDPOINT": f"127.0.0.1:{grpc_port}",
    }
    ran = subprocess.run(
        ["bash", "-c", text],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_S,
        text=True,
    )
    assert ran.returncode == 0, f"{ran.stdout[-5000:]}"
    assert "cancer" in ran.stdout


def options_of(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from parameter.opts
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from options_of(found)


def test_every_option_that_the_readme_names_exists() -> None:
    mentioned = set(re.findall(r"`[^`\n]*?(--[a-z][a-z-]+)", README.read_text()))
    assert len(mentioned) > 10
    assert mentioned - set(options_of(cli)) - {"--help"} == set(), "options that no command has"
