"""What lies behind the URIs of a run: how large each artifact really is, how long it takes, and what is wrong with it.

The pods know none of this; they find out as they would in earnest, by fetching, loading and running.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Content:
    """The truth about one artifact. Times are those of an idle, healthy pod."""

    size_bytes: int = 100 * MIB
    """What a copy takes once it is loaded."""
    estimate_bytes: int = 100 * MIB
    """What the adapter says before."""
    fetch_s: float = 0.5
    load_s: float = 0.2
    unload_s: float = 0.01
    run_s: float = 0.005
    transient_share: float = 0.0
    """Of its loads that fail and may be tried again."""
    broken: bool = False
    """Every load fails, for good."""
    kills_loads: bool = False
    """Loading it ends the process, unless it runs in a process of its own."""
    kills_runs: bool = False
    """Running it ends the process, unless it runs in a process of its own."""

    @property
    def sound(self) -> bool:
        """Whether a request for it can be expected to be answered."""
        return not (self.broken or self.kills_loads or self.kills_runs)


class Contents:
    """URI -> content. URIs are immutable: whoever publishes another content takes another URI."""

    def __init__(self) -> None:
        self._by_uri: dict[str, Content] = {}

    def publish(self, uri: str, content: Content) -> None:
        """From now on this content can be fetched."""
        self._by_uri[uri] = content

    def at(self, uri: str) -> Content | None:
        """What lies there."""
        return self._by_uri.get(uri)

    @property
    def by_uri(self) -> Mapping[str, Content]:
        """All of it."""
        return self._by_uri
