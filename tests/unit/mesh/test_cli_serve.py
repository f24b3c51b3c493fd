"""`hexcomb serve`: the settings class, the options, the environment and the help are one thing."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from mesh.cli.failure import Failure
from mesh.cli.main import run
from mesh.cli.serve import build_command
from mesh.node_settings import CannotStart
from mesh.settings import Settings


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    import mesh.process

    seen: list[Settings] = []

    def serve(settings: Settings) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr(mesh.process, "serve", serve)
    return seen


def test_help_lists_every_setting_with_its_reason_default_and_variable() -> None:
    text = " ".join(CliRunner().invoke(build_command(), ["--help"], terminal_width=100).output.split())
    text = text.replace("- ", "-")  # where a line was cut at a dash
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text, name
        assert f"HEXCOMB_{name.upper()}" in text, name
        assert field.description, name
        assert field.description.split()[0] in text, name
    assert text.count("[default:") == len(Settings.model_fields)


def test_options_become_settings(served: list[Settings]) -> None:
    assert run(["serve", "--capacity", "512MiB", "--grpc-port", "0", "--stop-grace-s", "2.5", "--insecure",
                "--trusted-prefixes", "s3://a/,file:///b/"]) == 0  # fmt: skip
    (settings,) = served
    assert settings.capacity == 512 * 1024 * 1024
    assert settings.grpc_port == 0
    assert settings.stop_grace_s == 2.5
    assert settings.insecure is True
    assert settings.trusted_prefixes == ("s3://a/", "file:///b/")


def test_an_option_goes_before_the_environment(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEXCOMB_GRPC_PORT", "7001")
    monkeypatch.setenv("HEXCOMB_HTTP_PORT", "7002")
    assert run(["serve", "--grpc-port", "7003"]) == 0
    assert (served[0].grpc_port, served[0].http_port) == (7003, 7002)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--http-port", "70000"], "--http-port (HEXCOMB_HTTP_PORT)"),
        (["--capacity", "lots"], "--capacity (HEXCOMB_CAPACITY): it must be a size in bytes, or with a unit: 512MiB"),
        (["--host", "0.0.0.0"], "is not loopback"),
        (["--device", "tpu"], "'cpu'"),
        (["--store", "redis"], "redis"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_starts(
    arguments: list[str], said: str, served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", *arguments]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert "Traceback" not in errors
    assert not served


def test_a_wrong_store_address_is_shown_without_its_password(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--store", "etcd://pool:hunter2@store-1:99999/prefix"]) == 2
    said = capsys.readouterr().err
    assert "store-1:99999" in said
    assert "hunter2" not in said


def test_a_pod_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import mesh.process

    def refuse(settings: Any) -> int:
        raise CannotStart("no room at the inn")

    monkeypatch.setattr(mesh.process, "serve", refuse)
    with pytest.raises(Failure, match="no room at the inn"):
        build_command().main([], standalone_mode=False)


def test_a_wrong_package_index_is_not_shown_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--package-index", "somebody:secret@index"]) == 2
    told = capsys.readouterr().err
    assert "--package-index" in told
    assert "secret" not in told
