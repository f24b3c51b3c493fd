"""Tenants' shares of a pod: what is guaranteed stays, what is borrowed goes back, and nobody starves of it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.events import Resized
from cache.fake_loader import FakeLoader
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.tenancy import TenantShare, check_shares, guarantees_within
from cache.types import Bytes, ModelKey, Place, RefusalKind, WantedModel

CPU = Place("device", "cpu")


def of(count_bytes: int) -> Bytes:
    return Bytes.of(CPU, count_bytes)


def pod(tenants: Mapping[str, TenantShare], *, size_bytes: int = 10, capacity_bytes: int = 100) -> FakeLoader:
    limits = CacheLimits(capacity=of(capacity_bytes), residency_min_s=0.0, tenants=tenants)
    sizes: dict[str, int] = {}
    return FakeLoader(
        CacheMachine(limits), lambda key: of(sizes.get(key.model_id, int(key.model_id.partition("=")[2] or size_bytes)))
    )


class Requests:
    """One request after the other, each to its end; `m=40` is a model of 40 bytes."""

    def __init__(self, loader: FakeLoader) -> None:
        self.loader = loader
        self.count = 0

    def __call__(self, tenant: str, *models: str) -> list[RefusalKind | None]:
        answers = []
        for model_id in models:
            self.count += 1
            self.loader.now_s += 1.0
            answers.append(self._answer(WantedModel(ModelKey(tenant, model_id))))
            self.loader.machine.validate()
        return answers

    def _answer(self, model: WantedModel) -> RefusalKind | None:
        loader = self.loader
        loader.want(self.count, model)
        loader.run()
        if self.count in loader.waiting:  # it holds its place until nothing more can be hoped for
            loader.pass_time(loader.now_s + 11.0)
            loader.run()
        if self.count in loader.refused:
            return loader.refused[self.count].kind
        loader.release(self.count)
        loader.run()
        return None

    def held(self, tenant: str) -> set[str]:
        return {view.key.model_id for view in self.loader.machine.copies() if view.tenant == tenant}


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


@settings(deadline=None, max_examples=60)
@given(
    guarantee=st.integers(1, 9),
    resident=st.integers(1, 10),
    scanned=st.integers(1, 40),
    seed=st.randoms(use_true_random=False),
)
def test_a_scan_takes_no_more_of_another_tenant_than_it_holds_beyond_its_guarantee(
    guarantee: int, resident: int, scanned: int, seed: object
) -> None:
    request = Requests(pod({"quiet": TenantShare(guarantee=of(10 * guarantee))}))
    request("quiet", *names("q", resident))
    assert set(request("loud", *names("scan", scanned))) == {None}
    assert len(request.held("quiet")) == max(min(guarantee, resident), resident - max(0, scanned + resident - 10))


def test_without_a_guarantee_a_scan_empties_the_pod() -> None:
    request = Requests(pod({}))
    request("quiet", *names("q", 10))
    request("loud", *names("scan", 10))
    assert request.held("quiet") == set()


def test_what_is_idle_is_borrowed_and_given_back_when_its_tenant_wants_it() -> None:
    request = Requests(pod({"a": TenantShare(guarantee=of(60)), "b": TenantShare(guarantee=of(40))}))
    request("b", *names("b", 10))
    assert len(request.held("b")) == 10, "all of the pod, as nobody else wants it"
    assert set(request("a", *names("a", 6))) == {None}
    assert len(request.held("a")) == 6
    assert request.held("b") == {"b6", "b7", "b8", "b9"}, "its last four remain"


def test_a_tenant_within_its_guarantee_takes_from_borrowers_before_its_own_older_copies() -> None:
    request = Requests(pod({"a": TenantShare(guarantee=of(50))}))
    request("a", *names("a", 4))
    request("borrower", *names("b", 6))
    request("a", "a4")
    assert request.held("a") == {"a0", "a1", "a2", "a3", "a4"}
    request("a", "a5")
    assert request.held("a") == {"a1", "a2", "a3", "a4", "a5"}, "beyond its guarantee the least recently used goes"


def test_a_copy_that_lies_across_the_guarantee_stays() -> None:
    request = Requests(pod({"a": TenantShare(guarantee=of(50))}))
    request("a", "x=40", "y=40")
    assert request("b", "big=40") == [RefusalKind.FULL]
    assert request.held("a") == {"x=40", "y=40"}
    assert request("b", "small=20") == [None]


def test_where_the_oldest_copy_may_not_go_a_larger_one_that_may_goes() -> None:
    request = Requests(pod({"a": TenantShare(guarantee=of(40))}))
    request("a", "small=40", "large=60")
    assert request("b", "b=60") == [None]
    assert request.held("a") == {"small=40"}


def test_a_tenant_at_its_limit_evicts_its_own_although_the_pod_has_room() -> None:
    request = Requests(pod({"a": TenantShare(limit=of(30))}))
    request("other", "o1")
    request("a", *names("a", 5))
    assert request.held("a") == {"a2", "a3", "a4"}
    assert request.held("other") == {"o1"}


def test_what_can_never_fit_a_tenants_limit_is_refused_and_the_limit_is_named() -> None:
    loader = pod({"a": TenantShare(limit=of(30))})
    request = Requests(loader)
    assert request("a", "big=40") == [RefusalKind.TOO_BIG]
    assert "tenant 'a' may hold 30 B" in loader.refused[1].message
    assert request("b", "big=40") == [None]


def test_a_tenant_that_waits_for_its_own_limit_holds_nobody_up() -> None:
    loader = pod({"a": TenantShare(limit=of(30))})
    loader.want(1, WantedModel(ModelKey("a", "in use=30")))
    loader.run()
    for waiter_id in range(2, 10):
        loader.want(waiter_id, WantedModel(ModelKey("a", f"more{waiter_id}")))
    loader.want(10, WantedModel(ModelKey("b", "other=70")))
    loader.run()
    assert 10 in loader.served
    assert loader.waiting == set(range(2, 10))
    loader.release(1)
    loader.run()
    assert {2, 3, 4} <= set(loader.served)
    loader.machine.validate()


def test_a_tenant_whose_copies_grow_beyond_its_limit_comes_back_to_it() -> None:
    loader = pod({"a": TenantShare(limit=of(40))})
    request = Requests(loader)
    request("a", *names("a", 4))
    last = loader.machine.copies()[-1].copy_id
    loader.send(Resized(last, of(25)))
    loader.run()
    loader.machine.validate()
    assert request.held("a") == {"a3", "a2"}
    use = loader.machine.usage().tenants["a"]
    assert (use.held, use.limit) == (of(35), of(40))


@settings(deadline=None, max_examples=100)
@given(
    guarantees=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    wants=st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 7)), max_size=50),
    last=st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 100)),
)
def test_whatever_fits_beside_the_others_guarantees_and_a_copy_of_each_is_loaded(
    guarantees: tuple[int, int], wants: list[tuple[str, int]], last: tuple[str, int]
) -> None:
    shares = {name: TenantShare(guarantee=of(count)) for name, count in zip("ab", guarantees, strict=True)}
    request = Requests(pod(shares))
    for tenant, number in wants:
        request(tenant, f"m{number}={5 + 4 * number}")
    tenant, size_bytes = last
    copies = request.loader.machine.copies()
    kept = 0
    for other, share in shares.items():
        sizes = [view.charged.total_bytes for view in copies if view.tenant == other]
        if other != tenant and share.guarantee and sizes:
            kept += min(sum(sizes), share.guarantee.total_bytes + max(sizes) - 1)
    answer = request(tenant, f"last={size_bytes}")
    assert answer == [None] or size_bytes > 100 - kept


def test_guarantees_that_cannot_all_be_kept_are_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"add up to 120 B .*\(a: 70 B .*, b: 50 B .*\), 20 B on device:cpu more"):
        check_shares({"a": TenantShare(guarantee=of(70)), "b": TenantShare(guarantee=of(50))}, of(100))
    with pytest.raises(ValueError, match=r"tenant 'a' is guaranteed 70 B .* and limited to 50 B"):
        check_shares({"a": TenantShare(of(70), of(50))}, of(100))


def test_guarantees_shrink_with_the_capacity() -> None:
    shares = {"a": TenantShare(guarantee=of(60)), "b": TenantShare(guarantee=of(20), limit=of(30))}
    assert guarantees_within(shares, of(100)) == {"a": of(60), "b": of(20)}
    assert guarantees_within(shares, of(40)) == {"a": of(30), "b": of(10)}
