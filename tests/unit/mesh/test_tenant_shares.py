"""Tenants' parts of a pod, from the settings to the cache's limits."""

from __future__ import annotations

import pytest

from cache.tenancy import TenantShare
from cache.types import Bytes, Place
from mesh.node_settings import CannotStart, cache_limits
from mesh.settings import Settings
from mesh.tenant_shares import parse_part, tenant_shares
from runtime_adapters.base import CPU

RAM = Place("device", "cpu")
GPU = Place("device", "cuda:0")
MIB = 1 << 20


def test_percentages_are_of_every_place_and_bytes_of_where_models_run() -> None:
    capacity = Bytes.from_mapping({RAM: 1000 * MIB, GPU: 400 * MIB})
    shares = tenant_shares(("a=25%", "b = 64MiB"), ("a=50%", "c=12.5%"), capacity, [GPU])
    assert shares == {
        "a": TenantShare(
            Bytes.from_mapping({RAM: 250 * MIB, GPU: 100 * MIB}), Bytes.from_mapping({RAM: 500 * MIB, GPU: 200 * MIB})
        ),
        "b": TenantShare(Bytes.of(GPU, 64 * MIB)),
        "c": TenantShare(limit=Bytes.from_mapping({RAM: 125 * MIB, GPU: 50 * MIB})),
    }


@pytest.mark.parametrize("entry", ["team", "=5%", "team=0%", "team=100.5%", "team=-1GiB", "team=5 percent"])
def test_an_amount_that_cannot_be_is_refused_with_what_was_found_and_what_is_allowed(entry: str) -> None:
    with pytest.raises(ValueError, match="allowed are TENANT=N%") as refused:
        parse_part(entry)
    assert repr(entry) in str(refused.value)


def test_a_pod_whose_guarantees_exceed_its_capacity_does_not_start() -> None:
    settings = Settings(capacity="1GiB", tenant_shares="a=60%,b=512MiB")  # type: ignore[arg-type]
    with pytest.raises(CannotStart, match=r"tenant_shares: the tenants' guarantees add up to .* lower the shares"):
        cache_limits(settings, (CPU,))


def test_the_shares_reach_the_cache() -> None:
    settings = Settings(capacity="1GiB", tenant_shares="a=25%", tenant_limits="a=512MiB")  # type: ignore[arg-type]
    assert cache_limits(settings, (CPU,)).tenants == {
        "a": TenantShare(Bytes.of(RAM, 256 * MIB), Bytes.of(RAM, 512 * MIB))
    }
