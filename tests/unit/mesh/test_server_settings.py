"""Trace and log settings: whose they are to change, and for which models."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mesh import tracing
from mesh.asking import Asking
from mesh.endpoint.access import Access
from mesh.endpoint.server_settings import ServerSettingsEndpoint
from mesh.log_levels import LogSwitch
from mesh.tracing import BadTraceSetting, Tracing
from mesh.transport.base import Call, StatusCode, TransportError
from mesh.wire import messages
from mesh.wire.generated import inference_pb2
from placement.records import ModelRecord, ModelSpec
from placement.view import Changes, ModelChange
from tests.unit.mesh.overviews import FakeOverview

HERE, ELSEWHERE = "ipv4:127.0.0.1:5", "ipv4:10.0.0.9:5"
ON = {"trace_level": ["TIMESTAMPS"]}


def endpoint(directory: Path, *, remote: bool = False) -> ServerSettingsEndpoint:
    overview = FakeOverview()
    return ServerSettingsEndpoint(
        Tracing(directory),
        LogSwitch(logging.getLogger("of this test")),
        overview,
        Asking(overview, lambda: 0.0),
        Access(),
        knows=lambda tenant, name: (tenant, name) == ("default", "m"),
        remote=remote,
    )


def trace(model: str, peer: str, settings: dict[str, list[str]]) -> Call:
    request = inference_pb2.TraceSettingRequest(model_name=model)
    for key, values in settings.items():
        request.settings[key].value.extend(values)
    return call(messages.TRACE_SETTING.path, request.SerializeToString(), peer)


def log_level(peer: str) -> Call:
    request = inference_pb2.LogSettingsRequest()
    request.settings["log_verbose_level"].uint32_param = 0
    return call(messages.LOG_SETTINGS.path, request.SerializeToString(), peer)


def call(method: str, body: bytes, peer: str) -> Call:
    return Call(method, body, (), None, peer=peer)


async def refused(endpoint: ServerSettingsEndpoint, asked: Call) -> StatusCode:
    with pytest.raises(TransportError) as error:
        await endpoint.routes()[asked.method](asked)
    return error.value.status


async def test_what_holds_for_all_tenants_is_changed_from_the_pod_s_own_machine(tmp_path: Path) -> None:
    closed, opened = endpoint(tmp_path), endpoint(tmp_path, remote=True)
    for asked in (log_level(ELSEWHERE), trace("", ELSEWHERE, ON)):
        assert await refused(closed, asked) is StatusCode.PERMISSION_DENIED
        await opened.routes()[asked.method](asked)
    for asked in (log_level(HERE), trace("", HERE, ON)):
        await closed.routes()[asked.method](asked)


async def test_settings_are_read_and_a_tenant_s_own_models_traced_from_anywhere(tmp_path: Path) -> None:
    settings = endpoint(tmp_path)
    for asked in (trace("", ELSEWHERE, {}), trace("m", ELSEWHERE, ON)):
        await settings.trace_setting(asked)
    await settings.log_settings(call(messages.LOG_SETTINGS.path, b"", ELSEWHERE))


async def test_a_name_that_nobody_registered_has_no_trace_settings(tmp_path: Path) -> None:
    settings = endpoint(tmp_path)
    for changed in ({}, ON):
        assert await refused(settings, trace("nobody", HERE, changed)) is StatusCode.NOT_FOUND


def test_one_tenant_s_models_leave_room_for_another_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MODELS_MAX", 2)
    traced = Tracing(tmp_path)
    for name in ("a", "b"):
        traced.change("t", name, ON)
    with pytest.raises(BadTraceSetting, match="2 models of tenant 't'"):
        traced.change("t", "c", ON)
    traced.change("u", "c", ON)


def test_settings_go_with_the_model_that_they_are_of(tmp_path: Path) -> None:
    traced = Tracing(tmp_path)
    traced.change("t", "m", ON)
    record = ModelRecord("t", "m", ModelSpec(uri="file:///m"), 1, 0.0, 0.0)
    traced.follow(Changes(1, (ModelChange("t", "m", None, record), ModelChange("u", "m", record, None))))
    assert traced.on
    traced.follow(Changes(2, (ModelChange("t", "m", record, None),)))
    assert not traced.on
    assert traced.settings("t", "m")["trace_level"] == ("OFF",)
