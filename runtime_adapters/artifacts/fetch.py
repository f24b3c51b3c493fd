"""The pod's door to artifacts: from a URI to a path on this disk that stays while it is used.

A fetch looks at what lies at the URI; if that is what it was last time, the content on disk is the answer. Otherwise it
reserves room, downloads (resuming an interrupted try), checks the spec's checksum, opens an archive, and stores the
result under the hash of its content (`fetching`). Any number of requests for one URI at a time share one fetch.

With a checksum in the spec, and content on disk that this URI gave before and that has this checksum, nothing is asked
of the server at all: a pod restarts and serves without its object store. (That a tenant knows a checksum is not enough:
content is found by the tenant, the storage key and the URI together.)

References: `fetch` returns an artifact with a reference, so that its files stay until `release`. What `prepare` makes
of an artifact stays as long (`forms`).

Once a prepared form is there, a large original is deleted: then `fetch` answers with the form, and only a request for
the `original` has it brought again.

Everything here is owned by one event loop.

Deliberately absent: back-off between fetches of a model that keeps failing, and which models to fetch. Those are the
cache's decisions; here only a broken transfer is tried again, within the same fetch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from runtime_adapters.artifacts.clients import forget_ambient_credentials
from runtime_adapters.artifacts.content import ContentRecord
from runtime_adapters.artifacts.credentials import StorageKeys
from runtime_adapters.artifacts.disk_records import variant_of
from runtime_adapters.artifacts.disk_tier import DiskTier
from runtime_adapters.artifacts.download import Hear, Stop
from runtime_adapters.artifacts.errand import understand
from runtime_adapters.artifacts.fetching import Fetched, Fetching, FetchLimits
from runtime_adapters.artifacts.forms import PreparedForms, form_key
from runtime_adapters.artifacts.leases import Leases
from runtime_adapters.artifacts.single_flight import SingleFlight
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.artifacts.unpack import OpenNew, open_new
from runtime_adapters.errors import BadArtifact


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """What to fetch, for whom. `checksum` is `sha256:<hex>`; `deadline_s` is when this waiter gives up (monotonic).

    `original`: the fetched files themselves, not a prepared form that stands for them.
    """

    uri: str
    storage_key: str | None = None
    checksum: str | None = None
    deadline_s: float | None = None
    tenant: str = "default"
    original: bool = False


@dataclass(frozen=True, slots=True)
class Artifact:
    """Content on this disk that stays until it is released.

    `content_hash` names the bytes: `sha256-...` of a file, `tree-...` of a directory. `fetched_bytes` came over the
    network (or from a local file) in the try that succeeded; 0 if all were here. `trusted`: its URI lies under
    a prefix whose artifacts may run code. `form`: the variant that `path` is, where a prepared form stands for the
    original; else empty.
    """

    path: Path
    content_hash: str
    size_bytes: int
    fetched_bytes: int
    seconds: float
    trusted: bool
    lease: int
    form: str = ""
    inner: str = ""
    """The model's place in a directory, where that is not the whole of it."""

    @property
    def is_directory(self) -> bool:
        """Whether what was fetched is one, as its hash says."""
        return self.content_hash.startswith("tree-")

    def within(self, inner: str) -> Artifact:
        """The same, whose model lies there. Not for a form, which is the model."""
        return replace(self, path=self.path / inner, inner=inner)


@dataclass(frozen=True, slots=True)
class DiskUse:
    """The disk tier at a moment. `saved_bytes`: what equal files of several models would take more if each had its own,
    and `dropped_bytes`: originals that prepared forms stand for."""

    capacity_bytes: int
    used_bytes: int
    entries: int
    fetching: int
    saved_bytes: int = 0
    dropped_bytes: int = 0


class ArtifactStore:
    """Fetches artifacts for one pod and keeps them on its disk, within a capacity."""

    def __init__(
        self,
        root: Path,
        *,
        capacity_bytes: int,
        limits: FetchLimits | None = None,
        storage: StorageKeys | None = None,
        policy: SourcePolicy | None = None,
        create_file: OpenNew = open_new,
        keep_originals: bool = False,
        content_gone: Callable[[str], None] = lambda content_hash: None,
    ) -> None:
        """Takes over `root` and rebuilds the ledger from what lies there: blocking, made at the pod's start.

        `content_gone` hears, on the event loop, which content has left this disk, by its hash.
        """
        forget_ambient_credentials()
        limits = limits or FetchLimits()
        self._housekeeping = ThreadPoolExecutor(1, "artifact-disk")
        self._disk = DiskTier(
            root,
            capacity_bytes,
            self._housekeeping,
            limits.partial_age_max_s,
            lambda key: content_gone(_content_hash(key)),
        )
        self._leases = Leases(self._disk)
        self._forms = PreparedForms(
            self._disk,
            self._leases,
            concurrent_max=limits.prepare_concurrent_max,
            timeout_s=limits.timeout_s,
            keep_originals=keep_originals,
        )
        self._fetching = Fetching(self._disk, limits, storage or StorageKeys(), policy or SourcePolicy(), create_file)
        self._fetches: SingleFlight[str, Fetched] = SingleFlight(limits.timeout_s, self._let_go)

    async def fetch(self, request: FetchRequest, hear: Hear | None = None) -> Artifact:
        """Bring an artifact to this disk, or find it there; it stays until `release`. `hear`: what comes of it on the
        way, if it is a single file; nothing of what is here already, or comes for somebody else.

        Raises BadArtifact (for good) or LoadFailed (for now); `artifacts.errors` has the kinds.
        """
        errand = understand(request.uri, request.tenant, request.storage_key, request.checksum)
        began_s = time.monotonic()

        def take(fetched: Fetched) -> Artifact | None:
            record, suffix = fetched.record, fetched.suffix
            if request.original and self._disk.is_hollow(record.key):
                return None  # somebody else's fetch, for whom the form would do
            artifact = Artifact(
                path=Path(),
                content_hash=record.key.removeprefix("content/"),
                size_bytes=record.size_bytes,
                fetched_bytes=fetched.fetched_bytes,
                seconds=time.monotonic() - began_s,
                trusted=fetched.trusted,
                lease=0,
            )
            return self._held(artifact, record, suffix)

        while True:
            run = partial(self._fetching.run, errand, request.original, hear)
            artifact = await self._fetches.join(errand.partial_key, run, take, _loop_time(request.deadline_s))
            if artifact is not None:
                return artifact

    def content_on_disk(self, request: FetchRequest) -> str | None:
        """The hash of the content that this request brought here once, if this disk still has it; nothing is held.

        Whether its source still says the same is not asked: a fetch does that.
        """
        if not self._disk.origins:
            return None
        try:
            errand = understand(request.uri, request.tenant, request.storage_key, request.checksum)
        except BadArtifact:
            return None
        known = self._disk.origins.get(errand.origin_key)
        if known is None or errand.sha256 not in (None, known.object_sha256):
            return None
        return _content_hash(known.content) if self._disk.has_content(known.content) else None

    def hold_again(self, artifact: Artifact) -> Artifact | None:
        """The same content under a reference of its own, if this disk still has it; its source is not asked.

        So that a model that comes back after an eviction is the model that left, and comes back at once.
        """
        record = self._disk.content(f"content/{artifact.content_hash}")
        if record is None:
            return None
        # The content may have left and come back under another name meanwhile.
        suffix = "" if record.is_directory or artifact.form else artifact.path.suffix
        return self._held(replace(artifact, fetched_bytes=0, seconds=0.0), record, suffix)

    def _held(self, artifact: Artifact, record: ContentRecord, suffix: str) -> Artifact | None:
        """The artifact under a new lease; None if neither its files are here nor a form that stands for them."""
        form = self._disk.form_of(record.key) if self._disk.is_hollow(record.key) else None
        if form is None and self._disk.is_hollow(record.key):
            return None
        lease = self._leases.open(record.key)
        if form is None:
            path = self._disk.content_path(record, suffix) / artifact.inner
        else:
            path = self._disk.prepared_path(form)
            self._leases.add(lease, form)
        return replace(artifact, path=path, lease=lease, form=variant_of(form) if form else "")

    def release(self, artifact: Artifact) -> None:
        """The files may go when the disk tier needs the room. Releasing twice does no harm."""
        content_key = self._leases.close(artifact.lease)
        if content_key is not None:
            self._forms.drop_original(content_key)

    async def prepare(
        self, artifact: Artifact, variant: str, make: Callable[[Path], bool], *, patiently: bool = False
    ) -> Path | None:
        """What `make` writes into an empty directory, made once per content and variant; None if there is none better.

        `variant` names format and runtime version. `make` runs on a thread, and its errors come out here. The directory
        stays as long as the artifact is held. Where the disk has no room for it, None: the original still loads.
        `patiently`: nobody waits for it; it is made by a thread that gives way to others.
        """
        return await self._forms.prepare(
            artifact.lease, _content_key(artifact), variant, artifact.size_bytes, make, patiently=patiently
        )

    async def beside(self, artifact: Artifact, name: str, room_bytes: int, fill: Callable[[Path, Stop], None]) -> Path:
        """What `fill` writes into an empty directory, made once for all artifacts that name the same; it stays as long
        as the artifact is held. `fill` runs on a thread, and ends early when the Stop says so. Raises what `fill` does,
        DiskFull, ArtifactTooLarge."""
        return await self._forms.beside(artifact.lease, name, room_bytes, fill)

    def is_prepared(self, artifact: Artifact, variant: str) -> bool:
        """Whether this variant was made of the artifact, and is here."""
        return bool(self._disk.prepared(form_key(_content_key(artifact), variant)))

    def tried_to_prepare(self, artifact: Artifact, variant: str) -> bool:
        """Whether it is known what this variant is: there, or no better than the artifact."""
        return self._disk.prepared(form_key(_content_key(artifact), variant)) is not None

    def use(self) -> DiskUse:
        """How full the disk tier is."""
        ledger = self._disk.ledger
        return DiskUse(
            ledger.capacity_bytes,
            ledger.used_bytes,
            len(ledger),
            len(self._fetches),
            ledger.saved_bytes,
            self._disk.dropped_bytes,
        )

    async def close(self) -> None:
        """Stop what is being fetched (it can go on at the next start) and wait until threads have let go of files."""
        await self._fetches.stop_all()
        await self._forms.close()
        await self._fetching.close()
        await asyncio.to_thread(self._housekeeping.shutdown)
        self._disk.close()

    def _let_go(self, fetched: Fetched) -> None:
        self._disk.release(fetched.record.key)


def _content_hash(key: str) -> str:
    return key.removeprefix("content/")


def _content_key(artifact: Artifact) -> str:
    return f"content/{artifact.content_hash}"


def _loop_time(deadline_s: float | None) -> float | None:
    # Not every loop's clock is the monotonic clock to the digit (uvloop rounds), so the difference is what counts.
    if deadline_s is None:
        return None
    return asyncio.get_running_loop().time() + deadline_s - time.monotonic()
