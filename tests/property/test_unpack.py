"""Whatever an archive's members are called, nothing outside the target changes; and the disk is never oversold."""

from __future__ import annotations

import io
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from runtime_adapters.artifacts.ledger import DiskLedger, NoRoom, Reservation, Room
from runtime_adapters.artifacts.locations import parse_location
from runtime_adapters.artifacts.unpack import UnpackLimits, plan_unpack, unpack
from runtime_adapters.errors import BadArtifact

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")
LIMITS = UnpackLimits(bytes_max=100_000, files_max=20)

hostile_parts = st.sampled_from(
    ["..", ".", "", "a", "b", "A", "~", "C:", "a\\b", "\x00", "caf\u00e9", "\ud800", "x" * 300]
)
names = st.one_of(
    st.lists(hostile_parts, min_size=1, max_size=6).map("/".join),
    st.text(max_size=40),
)
tar_types = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
tar_members = st.lists(st.tuples(names, tar_types, names, st.binary(max_size=50)), min_size=1, max_size=6)
zip_members = st.lists(st.tuples(names, st.integers(0, 0xFFFF), st.binary(max_size=50)), min_size=1, max_size=6)


def snapshot(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))
    }


def try_to_escape(archive: bytes, kind: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "outside").mkdir()
        (root / "outside/precious").write_bytes(b"precious")
        (root / "archive").write_bytes(archive)
        before = snapshot(root)
        target = root / "outside/target"
        target.mkdir()
        try:
            plan = plan_unpack(root / "archive", kind, LIMITS)
            records = unpack(root / "archive", kind, plan, target, LIMITS)
        except BadArtifact:
            records = ()
        written = snapshot(target)
        assert all(not path.is_symlink() for path in target.rglob("*"))
        assert {record.name for record in records} <= set(written)
        after = {name: value for name, value in snapshot(root).items() if not name.startswith("outside/target")}
        assert after == before


@settings(max_examples=150, deadline=None)
@given(tar_members)
def test_no_tar_writes_outside_its_directory(members: list[tuple[str, bytes, str, bytes]]) -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, target, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = target
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            try:
                archive.addfile(info, io.BytesIO(content))
            except (ValueError, UnicodeError):
                return
    try_to_escape(whole.getvalue(), "tar")


@settings(max_examples=150, deadline=None)
@given(zip_members)
def test_no_zip_writes_outside_its_directory(members: list[tuple[str, int, bytes]]) -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, mode, content in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename = name
            info.external_attr = mode << 16
            try:
                archive.writestr(info, content)
            except (ValueError, UnicodeError):
                return
    try_to_escape(whole.getvalue(), "zip")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["zip", "tar", "tar.gz"]), st.binary(max_size=2000), st.booleans(), st.randoms())
def test_random_bytes_are_refused_or_unpacked_and_never_raise_anything_else(
    kind: str, noise: bytes, flip: bool, random: object
) -> None:
    archive = noise
    if flip:
        whole = io.BytesIO()
        if kind == "zip":
            with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as packed:
                packed.writestr("a/b", noise)
                packed.writestr("c", b"c")
        else:
            with tarfile.open(fileobj=whole, mode="w:gz" if kind == "tar.gz" else "w") as tar:
                info = tarfile.TarInfo("a/b")
                info.size = len(noise)
                tar.addfile(info, io.BytesIO(noise))
        mutable = bytearray(whole.getvalue())
        for _ in range(3):
            mutable[random.randrange(len(mutable))] = random.randrange(256)  # type: ignore[attr-defined]
        archive = bytes(mutable)
    try_to_escape(archive, kind)


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=80) | names.map(lambda name: f"s3://bucket/{name}") | names.map(lambda name: f"http://h/{name}")
)
def test_every_uri_is_understood_in_one_way_or_refused(uri: str) -> None:
    try:
        location = parse_location(uri)
    except BadArtifact:
        return
    assert ".." not in location.segments
    assert parse_location(location.uri if location.scheme != "file" else "/" + location.path).uri == location.uri


class LedgerMachine(RuleBasedStateMachine):
    """The disk tier's ledger against simple sums."""

    reservations = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = DiskLedger(1000)
        self.now_s = 0.0
        self.open: dict[Reservation, int] = {}
        self.entries: dict[str, int] = {}
        self.used: dict[str, int] = {}
        self.leaving: list[int] = []

    @rule(target=reservations, size=st.integers(0, 600))
    def reserve(self, size: int) -> object:
        plan = self.ledger.plan_room(size)
        free = 1000 - self._total()
        idle = sum(held for key, held in self.entries.items() if not self.used[key])
        assert isinstance(plan, Room) is (size <= free + idle)
        if isinstance(plan, NoRoom):
            assert plan.attainable_bytes < size
            return None
        assert all(not self.used[key] for key in plan.victims)
        for key in plan.victims:
            assert self.ledger.begin_leaving(key).size_bytes == self.entries[key]
            self.leaving.append(self.entries.pop(key))
            del self.used[key]
        while self.leaving:
            self.ledger.end_leaving(self.leaving.pop())
        reservation = self.ledger.reserve(size)
        self.open[reservation] = size
        return reservation

    @rule(reservation=reservations, share=st.floats(0, 1))
    def settle(self, reservation: Reservation | None, share: float) -> None:
        if reservation in self.open and reservation is not None:
            size = int(self.open.pop(reservation) * share)
            self.now_s += 1
            key = f"e{reservation.number}"
            self.ledger.settle(reservation, key, size, self.now_s)
            self.entries[key] = size
            self.used[key] = 0

    @rule(reservation=reservations)
    def cancel(self, reservation: Reservation | None) -> None:
        if reservation in self.open and reservation is not None:
            del self.open[reservation]
            self.ledger.cancel(reservation)

    @rule(pick=st.randoms(), take=st.booleans())
    def use(self, pick: object, take: bool) -> None:
        keys = sorted(key for key in self.entries if take or self.used[key])
        if keys:
            key = pick.choice(keys)  # type: ignore[attr-defined]
            self.now_s += 1
            (self.ledger.acquire if take else self.ledger.release)(key, self.now_s)
            self.used[key] += 1 if take else -1

    @invariant()
    def nothing_is_oversold(self) -> None:
        self.ledger.validate()
        assert self.ledger.used_bytes == self._total() <= 1000

    def _total(self) -> int:
        return sum(self.open.values()) + sum(self.entries.values()) + sum(self.leaving)


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
