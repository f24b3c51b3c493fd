"""The settings of a pod: safe by default, read from arguments and environment, refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mesh.settings import MIB, Settings


def test_by_default_a_pod_is_on_loopback_and_trusts_nothing() -> None:
    settings = Settings()
    assert settings.is_loopback
    assert not settings.insecure
    assert settings.trusted_prefixes == ()
    assert not settings.allow_unjailed
    assert not settings.metrics_per_model
    assert (settings.grpc_port, settings.http_port) == (8033, 8008)


def test_every_setting_has_a_reason_and_is_named_with_its_unit() -> None:
    for name, field in Settings.model_fields.items():
        assert len(field.description or "") > 20, name
        if field.annotation is float:
            assert name.endswith("_s"), f"{name} is a float, and of what?"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_beyond_loopback_needs_the_word_insecure(host: str, loopback: bool) -> None:
    if loopback:
        assert Settings(host=host).is_loopback
        return
    with pytest.raises(ValidationError, match="--insecure"):
        Settings(host=host)
    assert not Settings(host=host, insecure=True).is_loopback


@pytest.mark.parametrize("text", ["512MiB", "0.5GiB", str(512 * MIB)])
def test_sizes_are_read_with_and_without_a_unit(text: str) -> None:
    assert Settings(capacity=text).capacity == 512 * MIB  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"capacity": "much"},
        {"capacity": -1},
        {"grpc_port": 70_000},
        {"grpc_port": -1},
        {"loads_concurrent_max": 0},
        {"load_timeout_s": 0},
        {"device": "tpu"},
        {"device": "cuda:0,cpu"},
        {"device": "cuda:0,cuda:0"},
        {"device": "cuda:0,cuda:00"},
        {"store": "etcd://localhost"},
        {"message_size_max": 1},
        {"tenant_ports": "blue"},
        {"tenant_ports": "=8040"},
        {"tenant_ports": "blue=ninety"},
        {"tenant_ports": "blue=70000"},
        {"tenant_shares": "blue"},
        {"tenant_shares": "blue=0%"},
        {"tenant_shares": "blue=101%"},
        {"tenant_shares": "blue=10%,blue=1GiB"},
        {"tenant_limits": "blue=some"},
        {"tenant_limits": "blue=0"},
        {"log_level": "loud"},
        {"package_index": "index.example.com"},
        {"no_such_setting": 1},
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_refused_by_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValidationError) as refused:
        Settings(**wrong)
    assert name in str(refused.value)


def test_the_environment_is_read_and_an_argument_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEXCOMB_CAPACITY", "64MiB")
    monkeypatch.setenv("HEXCOMB_TENANT_PORTS", "blue=8040, green=0")
    monkeypatch.setenv("HEXCOMB_TRUSTED_PREFIXES", "s3://a/,file:///b/")
    settings = Settings()
    assert settings.capacity == 64 * MIB
    assert settings.tenant_addresses == {"blue": 8040, "green": 0}
    assert settings.trusted_prefixes == ("s3://a/", "file:///b/")
    assert Settings(capacity=1024).capacity == 1024  # type: ignore[arg-type]


def test_an_empty_list_is_an_empty_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEXCOMB_HTTP_HOSTS", "")
    assert Settings().http_hosts == ()
    assert Settings(file_prefixes=" , ").file_prefixes == ()  # type: ignore[arg-type]


def test_settings_do_not_change_after_the_start() -> None:
    settings = Settings(data_dir=Path("here"))
    with pytest.raises(ValidationError):
        settings.data_dir = Path("there")
