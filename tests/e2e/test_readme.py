"""The README's commands, run as they stand there, in order, in one shell, in an empty directory.

A block after `<!-- run -->` is run, and one after `<!-- run NAME -->` in a shell with the others of that name; other
blocks are not commands of a quickstart (`make demo` has its own test). Only the ports differ: the text 8033 and 8008 is
replaced by free ones, since this machine may have a pod already; and what is planned from is two thirds of a log, which
shows the same in less time.
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
from mesh.demo.etcd_server import find_etcd

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(
    r"<!-- run ?(?P<group>\w*) -->\n```(?P<language>bash|python)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
TIMEOUT_S = 280
"""Beside seven other builds on two cores it took 114."""
PLAN_TIMEOUT_S = 600
"""It trains the demo's models, if no demo has run here before."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def script(group: str = "") -> str:
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT"]
    for block in BLOCK.finditer(README.read_text()):
        if block["group"] != group:
            continue
        if block["language"] == "python":
            lines += ["python3 - <<'END_OF_PYTHON'", block["text"], "END_OF_PYTHON"]
        else:
            lines.append(block["text"])
    return "\n".join(lines)


def run(text: str, directory: Path, ports: dict[str, int], *, timeout_s: float = TIMEOUT_S, **more: str) -> str:
    for written, free in ports.items():
        text = text.replace(written, str(free))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HEXCOMB_GRPC_PORT": str(ports["8033"]),
        "HEXCOMB_HTTP_PORT": str(ports["8008"]),
        "HEXCOMB_ENDPOINT": f"127.0.0.1:{ports['8033']}",
        **more,
    }
    ran = subprocess.run(
        ["bash", "-c", text],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout_s,
        text=True,
    )
    assert ran.returncode == 0, f"{ran.stdout[-5000:]}"
    return ran.stdout


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 10)
def test_the_commands_of_the_readme_run_as_they_stand(tmp_path: Path) -> None:
    pytest.importorskip("tritonclient")
    ports = dict(zip(("8033", "8008"), free_ports(2), strict=True))
    assert "cancer" in run(script(), tmp_path, ports)


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 10)
def test_the_commands_for_many_pods_run_as_they_stand(tmp_path: Path) -> None:
    skops = pytest.importorskip("skops.io")
    linear = pytest.importorskip("sklearn.linear_model")
    data = pytest.importorskip("sklearn.datasets")
    (tmp_path / "models").mkdir()
    skops.dump(
        linear.LogisticRegression(max_iter=500).fit(*data.load_iris(return_X_y=True)), tmp_path / "models/iris.skops"
    )
    written = ("8033", "8008", "8034", "8009", "2379")
    *found, peer_port = free_ports(len(written) + 1)
    ports = dict(zip(written, found, strict=True))
    peer = f"http://127.0.0.1:{peer_port}"
    client = f"http://127.0.0.1:{ports['2379']}"
    printed = run(
        script("pool"),
        tmp_path,
        ports,
        PATH=f"{Path(sys.executable).parent}:{find_etcd().parent}:{os.environ['PATH']}",
        ETCD_LISTEN_CLIENT_URLS=client,
        ETCD_ADVERTISE_CLIENT_URLS=client,
        ETCD_LISTEN_PEER_URLS=peer,
        ETCD_INITIAL_ADVERTISE_PEER_URLS=peer,
        ETCD_INITIAL_CLUSTER=f"default={peer}",
    )
    assert printed.count("predict") >= 2


@pytest.mark.slow
@pytest.mark.timeout(PLAN_TIMEOUT_S + 10)
def test_the_commands_for_planning_run_as_they_stand(tmp_path: Path) -> None:
    pytest.importorskip("tritonclient")
    pytest.importorskip("matplotlib")
    ports = dict(zip(("8033", "8008"), free_ports(2), strict=True))
    commands = script("plan")
    assert "--requests 6000" in commands
    printed = run(commands.replace("--requests 6000", "--requests 4000"), tmp_path, ports, timeout_s=PLAN_TIMEOUT_S)
    assert "2 pods in place of 4" in printed
    assert "keep at most 10.00% of requests cold" in printed
    assert (tmp_path / "plan.png").stat().st_size > 1000


def options_of(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from options_of(found)


def test_every_option_that_the_readme_names_exists() -> None:
    spans = [span for span in re.findall(r"`[^`\n]+`", README.read_text()) if "python -m tests." not in span]
    mentioned = {option for span in spans for option in re.findall(r"--[a-z][a-z-]+", span)}
    assert len(mentioned) > 10
    assert mentioned - set(options_of(cli)) - {"--help"} == set(), "options that no command has"
