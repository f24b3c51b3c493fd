"""Artifact stores of tests: small, impatient, and checked when they close."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from runtime_adapters.artifacts.credentials import StorageKeys
from runtime_adapters.artifacts.fetch import Artifact, ArtifactStore
from runtime_adapters.artifacts.fetching import FetchLimits
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.artifacts.unpack import open_new

SECRET = "s3cr3t-value-nobody-may-see"
LIMITS = FetchLimits(stall_timeout_s=2.0, connect_timeout_s=2.0, retry_delay_s=0.01, timeout_s=30.0)
CAPACITY_BYTES = 64 * 1024 * 1024


@dataclass
class Counted:
    """Counts the files that a store creates: one per downloaded object."""

    created: int = 0

    def __call__(self, path: Path) -> BinaryIO:
        self.created += 1
        return open_new(path)


@asynccontextmanager
async def opened(
    root: Path,
    *,
    storage: StorageKeys | None = None,
    limits: FetchLimits = LIMITS,
    policy: SourcePolicy | None = None,
    create: Callable[[Path], BinaryIO] = open_new,
    capacity_bytes: int = CAPACITY_BYTES,
) -> AsyncIterator[ArtifactStore]:
    store = ArtifactStore(
        root / "disk",
        capacity_bytes=capacity_bytes,
        limits=limits,
        storage=storage,
        policy=policy or SourcePolicy(pvc_root=root / "claims"),
        create_file=create,
    )
    try:
        yield store
        store._disk.ledger.validate()
    finally:
        await store.close()


def content_of(artifact: Artifact) -> bytes | dict[str, bytes]:
    if artifact.path.is_dir():
        return {
            path.relative_to(artifact.path).as_posix(): path.read_bytes()
            for path in sorted(artifact.path.rglob("*"))
            if path.is_file()
        }
    return artifact.path.read_bytes()


def sha256_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
