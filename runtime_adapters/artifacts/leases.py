"""Who holds what of the disk tier: a lease is a content, and the prepared forms that were made of it since.

What a lease holds stays on the disk. Owned by the event loop.
"""

from __future__ import annotations

import itertools

from runtime_adapters.artifacts.disk_tier import DiskTier


class Leases:
    """All leases on one disk tier."""

    def __init__(self, disk: DiskTier) -> None:
        self._disk = disk
        self._keys: dict[int, list[str]] = {}
        self._numbers = itertools.count(1)

    def __contains__(self, lease: int) -> bool:
        return lease in self._keys

    def open(self, content_key: str) -> int:
        """Hold a content."""
        lease = next(self._numbers)
        self._keys[lease] = []
        self.add(lease, content_key)
        return lease

    def add(self, lease: int, form: str) -> None:
        """Hold a form as well. The lease must be open."""
        self._disk.acquire(form)
        self._keys[lease].append(form)

    def close(self, lease: int) -> str | None:
        """Let go of all that it holds: the content's key, or None if it was closed before."""
        keys = self._keys.pop(lease, None)
        for key in keys or ():
            self._disk.release(key)
        return keys[0] if keys else None

    def count_with_form(self, content_key: str) -> int:
        """Leases on this content that hold a form which stands for it."""
        return sum(
            keys[0] == content_key and any(self._disk.prepared(key) for key in keys[1:]) for keys in self._keys.values()
        )
