"""What is known of contents before they are loaded: measured here, else measured by another pod, else estimated.

The adapter's estimate is made in any case where this pod has not measured: it says which parts are shared with other
contents, which a profile does not. A profile then puts its own figures in the place of the estimated ones, and adds
what no estimate knows: what runs took, for how large requests.

What this pod measures it keeps for itself and hands on to the others (`placement.profiles`).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b

from cachetools import LRUCache

from placement.profiles import Profile, ProfileStore
from runtime_adapters.base import Size
from runtime_adapters.frameworks import installed_version

REMEMBERED_MAX = 100_000
"""Contents that this pod has measured, about 0.3 KB each."""


@dataclass(frozen=True, slots=True)
class Loadable:
    """A content, and what loads it: where these are equal, so are the sizes."""

    content_hash: str
    runtime: str


NOTHING = Loadable("", "")


@dataclass(frozen=True, slots=True)
class Known:
    """What a copy takes, and its runs for requests of up to `request_bytes`."""

    size: Size
    workspace_bytes: int = 0
    request_bytes: int = 0
    peak_bytes: int = 0
    """What its load takes at its highest; 0: not measured."""


class KnownSizes:
    """Owned by the event loop."""

    def __init__(self, profiles: ProfileStore | None = None) -> None:
        self._profiles = profiles
        self._here: LRUCache[Loadable, Known] = LRUCache(maxsize=REMEMBERED_MAX)

    def here(self, what: Loadable) -> Known | None:
        """As this pod has measured it."""
        return self._here.get(what)

    async def expected(self, what: Loadable, estimate: Size) -> Known:
        """The estimate, corrected by what another pod has measured."""
        profile = (
            None
            if self._profiles is None or not what.content_hash
            else await self._profiles.read(what.content_hash, what.runtime)
        )
        return Known(estimate) if profile is None else known_from(profile, estimate)

    async def load_time_s(self, content_hash: str, format_name: str) -> float:
        """What loading this content took the pod that measured it last on a CPU like this one; 0 where none has. Asked
        where it is not worth the import of a framework to know what would load it. An empty format may be any."""
        if self._profiles is None:
            return 0.0
        alike = runtimes_of(format_name)
        found = await self._profiles.of_content(content_hash)
        timed = [profile for runtime, profile in found.items() if runtime.startswith(alike) and profile.load_s > 0]
        return max(timed, key=lambda profile: profile.measured_at_s).load_s if timed else 0.0

    def measured(
        self, what: Loadable, size: Size, *, load_s: float, fetch_s: float, run_s: float, peak_bytes: int = 0
    ) -> None:
        """A copy was loaded, and takes this. `peak_bytes` 0: not measured this time."""
        before = self._here.get(what) or Known(size)
        known = replace(before, size=size, peak_bytes=peak_bytes or before.peak_bytes)
        self._here[what] = known
        self._note(what, known, load_s, fetch_s, run_s)

    def measured_again(self, what: Loadable, known: Known) -> None:
        """A copy that serves was measured, or its runs were."""
        if (before := self._here.get(what)) is not None:
            known = replace(known, peak_bytes=before.peak_bytes)
        self._here[what] = known
        self._note(what, known)

    def _note(
        self, what: Loadable, known: Known, load_s: float = 0.0, fetch_s: float = 0.0, run_s: float = 0.0
    ) -> None:
        if self._profiles is not None and what.content_hash:
            size = known.size
            self._profiles.note(
                what.content_hash,
                what.runtime,
                Profile(
                    host_bytes=size.host_bytes,
                    mapped_bytes=size.mapped_bytes,
                    device_bytes=size.device_bytes,
                    workspace_bytes=known.workspace_bytes,
                    request_bytes=known.request_bytes,
                    peak_bytes=known.peak_bytes,
                    load_s=load_s,
                    fetch_s=fetch_s,
                    run_s=run_s,
                ),
            )


def known_from(profile: Profile, estimate: Size) -> Known:
    """A profile's bytes in the place of the estimated ones; what is shared with other contents stays as estimated."""
    size = replace(
        estimate,
        host_bytes=profile.host_bytes,
        mapped_bytes=profile.mapped_bytes,
        device_bytes=profile.device_bytes,
    )
    if sum(count for _, count in size.shared) > size.mapped_bytes:
        size = replace(size, shared=())  # prepared in another way there: nothing is known to be shared
    return Known(size, profile.workspace_bytes, profile.request_bytes, profile.peak_bytes)


def runtime_of(format_name: str, variant: str, extra: str, device: str, parameters: Mapping[str, str]) -> str:
    """Names what loads a content: CPU architecture, framework and version, where, and with which parameters.

    `variant` names the prepared form and so the version; it is empty for a copy in a process of its own, whose
    framework this process need not even import.
    """
    loader = f"{variant}-{device}" if variant else f"{format_name}-{_version_of(extra)}-process"
    given = "&".join(f"{name}={value}" for name, value in sorted(parameters.items()))
    digest = f"-{blake2b(given.encode(), digest_size=6).hexdigest()}" if given else ""
    return f"{platform.machine()}-{loader}{digest}"


def runtimes_of(format_name: str) -> str:
    """How the names of all that load this format on this architecture begin; of any format where it is empty."""
    return f"{platform.machine()}-{format_name}-" if format_name else f"{platform.machine()}-"


@lru_cache(maxsize=64)
def _version_of(extra: str) -> str:
    return installed_version(extra) or "none"
