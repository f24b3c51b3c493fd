"""Who is asking: the order in which a tenant is found, and that every method has its role."""

from __future__ import annotations

import pytest

from mesh.endpoint.access import DEFAULT_TENANT, EVERY_ROLE, ROLE_OF_METHOD, Access, Role
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
    assert all(role in EVERY_ROLE and len(role) == 1 for role in ROLE_OF_METHOD.values())


def test_inference_and_management_are_different_roles() -> None:
    for path, role in ROLE_OF_METHOD.items():
        if "ModelMesh" in path:
            assert role is Role.MANAGE
        if path == messages.MODEL_INFER.path:
            assert role is Role.INFER


def test_a_caller_that_invents_tenants_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.endpoint.access._CALLERS_REMEMBERED_MAX", 10)
    access = Access()
    for index in range(50):
        assert access.caller(call(f"tenant-{index}")).tenant == f"tenant-{index}"
    assert len(access._callers) == 10
