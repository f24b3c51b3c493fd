"""One call from its first try to its answer, without network and clock: what to send where, and how long to wait.

The blocking and the asyncio client carry out the same steps; they differ only in how they wait. `conversation` is a
generator: it yields a step, is sent what came of it, and returns the answer's bytes, or raises the error to show.

    Send ──► answer ─────────────────────────────► done
         ──► no answer, or "not me" (Unavailable) ─► the next endpoint, at once, until all were asked
         ──► the same, of a model's owner ─────────► the endpoints
         ──► anything else, or all were asked ─────► `mesh.client.retries`: Pause and another round, or the error

A try that may have reached a pod and ended without its answer is counted, and the count travels with the tries after
it (`hexcomb-previous-attempts`): pods that see several such tries of one request learn which models pods die of.

Of a round's errors a pod's own word is shown rather than a broken line: it says more.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from mesh.client.endpoints import Endpoints
from mesh.client.errors import HexcombError, Unavailable
from mesh.client.owners import Owners
from mesh.client.retries import RetryPolicy, wait_before_retry_s
from mesh.transport.base import Metadata
from mesh.wire.messages import PREVIOUS_ATTEMPTS_METADATA

LEAST_TIMEOUT_S = 0.001


@dataclass(frozen=True, slots=True)
class Send:
    """Send the call there; answer with Received or the error."""

    address: str
    metadata: Metadata
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait; answer with None."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Received:
    """An answer, and what it says beside its message."""

    body: bytes
    draining: bool = False
    revision: int = 0
    """Of the store, after a write; 0: nothing was written."""
    owner: str = ""
    """HOST:PORT of the pod that answered, where it is not the one that was asked."""


Conversation = Generator[Send | Pause, Received | HexcombError | None, bytes]


def conversation(
    endpoints: Endpoints,
    policy: RetryPolicy,
    metadata: Metadata,
    deadline_s: float,
    clock: Callable[[], float],
    chance: Callable[[], float],
    owners: Owners | None = None,
    model: str = "",
    *,
    repeats: bool = True,
) -> Conversation:
    """The steps of one call. `deadline_s` is on `clock`; `chance` draws from [0, 1). With `owners`, and for a call that
    one `model` answers, its owner is asked first. Not `repeats`: what may have been done is not done again. Raises
    HexcombError."""
    if not model:
        owners = None
    owner = None if owners is None else owners.choose(model)
    rounds, unanswered, attempts = 1, 0, 0
    tried: list[str] = []
    shown: HexcombError | None = None
    while True:
        if owner is None:
            address = endpoints.choose(tried)
            tried.append(address)
        else:
            address = owner
        sent = (*metadata, *endpoints.metadata())
        if unanswered:
            sent = (*sent, (PREVIOUS_ATTEMPTS_METADATA, str(unanswered)))
        attempts += 1
        outcome = yield Send(address, sent, max(deadline_s - clock(), LEAST_TIMEOUT_S))
        if isinstance(outcome, Received):
            endpoints.answered(address, draining=outcome.draining)
            if owners is not None:
                if outcome.owner:
                    owners.told(model, outcome.owner)
                elif outcome.draining:
                    owners.forget(model, address)
            if outcome.revision:
                endpoints.wrote(outcome.revision)
            return outcome.body
        assert outcome is not None
        outcome.endpoint = address
        if outcome.answered:
            endpoints.answered(address, draining=outcome.draining)
        else:
            endpoints.failed(address)
            unanswered += outcome.sent
            if outcome.sent and not repeats:
                outcome.attempts = attempts
                raise outcome
        if shown is None or outcome.answered:
            shown = outcome
        remaining_s = deadline_s - clock()
        if owner is not None and owners is not None:
            owner = None
            owners.forget(model, address)
            if not outcome.answered:
                owners.lost(address)
            if isinstance(outcome, Unavailable) and remaining_s > 0:
                continue
        if isinstance(outcome, Unavailable) and len(tried) < len(endpoints) and remaining_s > 0:
            continue
        wait_s = wait_before_retry_s(shown, rounds, remaining_s, policy, chance())
        if wait_s is None:
            shown.attempts = attempts
            raise shown
        yield Pause(wait_s)
        rounds += 1
        tried.clear()
        shown = None
