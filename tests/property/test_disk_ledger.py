"""The disk tier's books against a plain model: shared bytes count once, and nothing is ever oversold."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime_adapters.artifacts.ledger import DiskLedger, Leaving, NoRoom

CAPACITY_BYTES = 1_000
SHARED_BYTES = {"backbone": 300, "stem": 120, "neck": 50}
contents = st.sets(st.sampled_from(sorted(SHARED_BYTES)))


class DiskLedgerMachine(RuleBasedStateMachine):
    """Entries with bytes of their own and files that they share come, are used, and leave for others."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = DiskLedger(CAPACITY_BYTES)
        self.own: dict[str, int] = {}
        self.shared: dict[str, set[str]] = {}
        self.used: dict[str, int] = {}
        self.leaving: list[Leaving] = []
        self.now_s = 0.0

    def on_disk_bytes(self) -> int:
        """What files would take: each shared one once."""
        held = set().union(*self.shared.values()) if self.shared else set()
        return sum(self.own.values()) + sum(SHARED_BYTES[name] for name in held)

    @rule(own=st.integers(1, 200), names=contents)
    def make(self, own: int, names: set[str]) -> None:
        self.now_s += 1.0
        whole = own + sum(SHARED_BYTES[name] for name in names)
        plan = self.ledger.plan_room(whole)
        if isinstance(plan, NoRoom):
            in_use = {key: number for key, number in self.used.items() if number}
            kept = {key: self.shared[key] for key in in_use}
            kept_bytes = sum(self.own[key] for key in in_use)
            kept_bytes += sum(SHARED_BYTES[name] for name in set().union(*kept.values()) if kept)
            leaving_bytes = sum(left.size_bytes for left in self.leaving)
            assert kept_bytes + leaving_bytes + whole > CAPACITY_BYTES, "there was room"
            return
        for key in plan.victims:
            assert not self.used.pop(key), "a victim was in use"
            names_left = self.shared.pop(key)
            del self.own[key]
            left = self.ledger.begin_leaving(key)
            still = set().union(*self.shared.values()) if self.shared else set()
            assert set(left.shared) == names_left - still, "the last holder frees what nobody else has"
            self.ledger.end_leaving(left.size_bytes)
        reservation = self.ledger.reserve(whole)
        key = f"prepared/{self.now_s}"
        self.ledger.settle(
            reservation, key, own, self.now_s, tuple((name, SHARED_BYTES[name]) for name in sorted(names))
        )
        self.own[key], self.shared[key], self.used[key] = own, names, 0

    @precondition(lambda self: self.own)
    @rule(data=st.data(), more=st.booleans())
    def use(self, data: st.DataObject, more: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.own)))
        self.now_s += 1.0
        if more:
            self.ledger.acquire(key, self.now_s)
            self.used[key] += 1
        elif self.used[key]:
            self.ledger.release(key, self.now_s)
            self.used[key] -= 1

    @precondition(lambda self: any(not number for number in self.used.values()))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(key for key, number in self.used.items() if not number)))
        before_bytes = self.on_disk_bytes()
        del self.own[key], self.shared[key], self.used[key]
        left = self.ledger.begin_leaving(key)
        assert left.size_bytes == before_bytes - self.on_disk_bytes()
        self.leaving.append(left)

    @precondition(lambda self: self.leaving)
    @rule()
    def gone(self) -> None:
        self.ledger.end_leaving(self.leaving.pop().size_bytes)

    @precondition(lambda self: self.own)
    @rule(data=st.data(), to=st.integers(0, 50))
    def shrink(self, data: st.DataObject, to: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.own)))
        self.leaving.append(Leaving(self.ledger.begin_shrinking(key, to)))
        self.own[key] = min(self.own[key], to)

    @precondition(lambda self: self.own)
    @rule(data=st.data(), by=st.integers(0, 100))
    def fill(self, data: st.DataObject, by: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.own)))
        if self.ledger.used_bytes + by > CAPACITY_BYTES:
            return
        reservation = self.ledger.reserve(by)
        self.own[key] += by
        self.ledger.settle_into(reservation, key, self.own[key])
        self.ledger.cancel(reservation)

    @invariant()
    def the_books_are_right(self) -> None:
        self.ledger.validate()
        assert self.ledger.entry_bytes == self.on_disk_bytes()
        assert self.ledger.used_bytes == self.on_disk_bytes() + sum(left.size_bytes for left in self.leaving)
        each_for_itself = sum(self.own.values()) + sum(
            SHARED_BYTES[name] for names in self.shared.values() for name in names
        )
        assert self.ledger.saved_bytes == each_for_itself - self.on_disk_bytes()


DiskLedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDiskLedger = DiskLedgerMachine.TestCase
