"""Which pod holds which model, as far as a client was told: it asks there first, and saves the hop.

A pod that has a request answered by another one says in its answer at which address that one is. The next request for
the model goes there, if a connection to it stands by then: it is made in the background, so a client that cannot reach
single pods, only the endpoint before them, loses nothing by it. What is known is forgotten

* when the owner itself has another pod answer: then that one is the owner;
* when it gives no answer, says that it is not able to, or drains: the call goes on at the endpoints;
* after a while, at different times for different models, so that a client notices further copies of a hot one.

Deliberately absent: connections (`ready` is asked), and any knowledge of pods that no answer named.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from cachetools import LRUCache

MODELS_MAX = 10_000
"""About 1 MB; of more, those that were asked for last."""
KEPT_S = 30.0
"""At least; at most twice that."""
LEFT_OUT_S = 10.0
"""A pod that gave no answer is not taken for anybody's owner for so long, whoever names it."""


class _Owner(NamedTuple):
    address: str
    until_s: float


class Owners:
    """May be used from several threads."""

    def __init__(self, ready: Callable[[str], bool], clock: Callable[[], float], chance: Callable[[], float]) -> None:
        """`ready`: whether a call to an address would leave at once; asked the first time it begins to connect."""
        self._ready = ready
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._owners: LRUCache[str, _Owner] = LRUCache(MODELS_MAX)
        self._left_out_until_s: dict[str, float] = {}

    def choose(self, model: str) -> str | None:
        """Where to ask for this model; None: at the endpoints."""
        with self._lock:
            owner = self._owners.get(model)
            if owner is None:
                return None
            now_s = self._clock()
            if now_s >= owner.until_s:
                del self._owners[model]
                return None
            if self._is_left_out(owner.address, now_s):
                return None
        return owner.address if self._ready(owner.address) else None

    def told(self, model: str, address: str) -> None:
        """An answer named the pod that gave it."""
        with self._lock:
            now_s = self._clock()
            known = self._owners.get(model)
            if (known is not None and known.address == address) or self._is_left_out(address, now_s):
                return
            self._owners[model] = _Owner(address, now_s + KEPT_S * (1 + self._chance()))
        self._ready(address)

    def forget(self, model: str, address: str) -> None:
        """That one is not, or is not to be, asked for the model any more."""
        with self._lock:
            known = self._owners.get(model)
            if known is not None and known.address == address:
                del self._owners[model]

    def lost(self, address: str) -> None:
        """That one gives no answers."""
        with self._lock:
            self._left_out_until_s[address] = self._clock() + LEFT_OUT_S

    def _is_left_out(self, address: str, now_s: float) -> bool:
        until_s = self._left_out_until_s.get(address)
        if until_s is None:
            return False
        if now_s < until_s:
            return True
        del self._left_out_until_s[address]
        return False
