"""The command line as a whole: exit codes, errors in one line, and a start that imports nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import click
import pytest

from mesh.cli import main as command_line
from mesh.cli.failure import Failure

HEAVY = ("numpy", "grpc", "pydantic", "google.protobuf", "rich", "yaml", "psutil")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from mesh.cli.main import run; run(['--help']); "
        f"sys.stderr.write(','.join(m for m in {HEAVY!r} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "serve" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["models", "aliases", "explain", "pods", "top", "infer", "convert", "plan", "demo"])
def test_help_of_a_command_imports_no_server_and_no_framework(command: str) -> None:
    code = (
        f"import sys; from mesh.cli.main import run; run([{command!r}, '--help']); "
        f"sys.stderr.write(','.join(m for m in {HEAVY!r} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--json" in done.stdout or command in ("models", "aliases")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        ([], 2, ""),
        (["--help"], 0, ""),
        (["--version"], 0, ""),
        (["no-such-command"], 2, "no-such-command"),
        (["models", "show"], 2, "NAME"),
        (["models", "list", "--limit", "none"], 2, "--limit"),
        (["models", "register"], 2, "NAME is missing"),
        (["models", "register", "iris"], 2, "--uri is missing"),
        (["models", "register", "iris", "--from", "."], 2, "NAME and --from exclude each other"),
        (["models", "register", "--from", ".", "--uri", "x"], 2, "--uri and --from exclude each other"),
        (["models", "register", "--from", "/no/such/place"], 2, "/no/such/place"),
        (["models", "register", "iris", "--uri", "x", "--label", "x"], 2, "KEY=VALUE"),
        (["models", "register", "iris", "--uri", "x", "--capacity-hint", "much"], 2, "'much' is not a size"),
        (["models", "register", "iris", "--uri", "x", "--checksum", "md5:1"], 2, "checksum"),
        (["models", "register", "iris", "--uri", "s3://a/b", "--watch"], 2, "'s3://a/b' is not there on this machine"),
        (["pods", "--endpoint", "nowhere"], 2, "HOST:PORT"),
        (["pods", "--endpoint", "http://127.0.0.1:8033"], 2, "'http://127.0.0.1:8033' is a URL"),
        (["infer", "iris", "--input", "/no/such/file"], 2, "/no/such/file"),
        (["demo", "--kinds", "tensorflow"], 2, "'tensorflow' is not known; known are onnx"),
        (["serve", "--grpc-port", "x"], 2, "--grpc-port (HEXCOMB_GRPC_PORT)"),
        (["pods", "--endpoint", "127.0.0.1:1"], 3, "127.0.0.1:1"),
    ],
)
def test_exit_codes_and_one_clear_line(
    arguments: list[str], exit_code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.run(arguments) == exit_code
    errors = capsys.readouterr().err
    assert said in errors
    assert "Traceback" not in errors
    if said:
        assert errors.startswith("error: ")


@pytest.mark.parametrize("arguments", [[], ["models"], ["pipelines"]])
def test_a_group_without_a_command_shows_its_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run(arguments) == 2
    captured = capsys.readouterr()
    assert "error:" not in captured.err
    assert (captured.out + captured.err).startswith(" ".join(["Usage: hexcomb", *arguments, "[OPTIONS]"]))


def test_an_unreachable_server_is_named_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run(["models", "list", "--endpoint", "127.0.0.1:1", "--json"]) == 3
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["exit_code"] == 3
    assert "127.0.0.1:1" in error["message"]
    assert "hexcomb serve" in error["hint"]
    assert "hexcomb serve" in captured.err


@pytest.mark.parametrize(
    ("raised", "exit_code", "said"),
    [
        (Failure("it failed", hint="try this"), 1, "error: it failed\nhint: try this\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (click.UsageError("wrong"), 2, "error: wrong\n"),
        (ZeroDivisionError("by zero"), 1, "error: ZeroDivisionError: by zero\n"),
    ],
)
def test_every_error_becomes_a_line_and_a_code(
    raised: BaseException,
    exit_code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(command_line.cli, "main", fail)
    assert command_line.run(["pods"]) == exit_code
    captured = capsys.readouterr()
    assert captured.err.startswith(said)
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_json_errors_are_on_stdout_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run(["models", "show", "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["exit_code"] == 2
    assert captured.err.startswith("error: ")
