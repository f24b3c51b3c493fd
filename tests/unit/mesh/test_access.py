"""Who is asking: the order in which a tenant is found, and that every method has its role."""

from __future__ import annotations

import pytest

from mesh.endpoint.access import DEFAULT_TENANT, ROLE_OF_METHOD, Access, Role
from mesh.transport.base import Call, StatusCode, TransportError
from mesh.wire import messages


def call(tenant: str | None = None, listener_tenant: str | None = None) -> Call:
    metadata = () if tenant is None else ((messages.TENANT_METADATA, tenant),)
    return Call(messages.MODEL_INFER.path, b"", metadata, listener_tenant=listener_tenant)


@pytest.mark.parametrize(
    ("header", "listener", "tenant"),
    [
        (None, None, DEFAULT_TENANT),
        ("", None, DEFAULT_TENANT),
        ("blue", None, "blue"),
        (None, "green", "green"),
        ("blue", "green", "blue"),
        ("", "green", "green"),
    ],
)
def test_the_header_goes_before_the_address_and_both_before_the_default(
    header: str | None, listener: str | None, tenant: str
) -> None:
    access = Access()
    for _ in range(2):  # the second time from memory
        assert access.caller(call(header, listener)).tenant == tenant


@pytest.mark.parametrize("tenant", ["x" * 5000, "a\nb", " blue", "blue ", "a\u202eb"])
def test_a_tenant_that_is_no_name_is_an_invalid_argument(tenant: str) -> None:
    with pytest.raises(TransportError, match="tenant") as refused:
        Access().caller(call(tenant))
    assert refused.value.status is StatusCode.INVALID_ARGUMENT


def test_every_method_that_is_declared_has_a_role() -> None:
    declared = {method.path for method in vars(messages).values() if isinstance(method, messages.Method)}
    assert set(ROLE_OF_METHOD) == declared
    assert all(len(role) == 1 for role in ROLE_OF_METHOD.values())


def test_inference_and_management_are_different_roles() -> None:
    for path, role in ROLE_OF_METHOD.items():
        if "ModelMesh" in path:
            assert role is Role.MANAGE
        if path == messages.MODEL_INFER.path:
            assert role is Role.INFER


def as_pod(shown: str | None, method: str = messages.ORDER.path) -> Call:
    return Call(method, b"", () if shown is None else ((messages.PEER_KEY_METADATA, shown),))


@pytest.mark.parametrize("shown", [None, "", "other", "schlüssel"])
def test_what_is_for_pods_is_refused_to_whoever_does_not_show_this_pods_key(shown: str | None) -> None:
    for access in (Access("key"), Access()):
        assert not access.is_peer(as_pod(shown))
        with pytest.raises(TransportError, match="for pods of this pool") as refused:
            access.caller(as_pod(shown))
        assert refused.value.status is StatusCode.PERMISSION_DENIED


def test_a_pod_that_shows_the_key_is_let_in_and_keeps_its_tenant() -> None:
    access = Access("key")
    assert access.is_peer(as_pod("key"))
    assert access.caller(as_pod("key")).tenant == DEFAULT_TENANT


def test_everybody_may_ask_whether_a_pod_is_there() -> None:
    assert Access("key").caller(as_pod(None, messages.PROBE.path)).tenant == DEFAULT_TENANT


def test_a_caller_that_invents_tenants_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.endpoint.access._CALLERS_REMEMBERED_MAX", 10)
    access = Access()
    for index in range(50):
        assert access.caller(call(f"tenant-{index}")).tenant == f"tenant-{index}"
    assert len(access._callers) == 10
