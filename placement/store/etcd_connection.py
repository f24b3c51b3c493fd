"""The way to etcd: which of its members is asked, how often, and with which token.

**One member at a time.** Each member has a channel of its own, and all calls go to the current one. A call that finds
no connection there moves everybody on to the next; so does one that gets no answer. gRPC's own balancing is not used:
it hides which member answered and whether a request ever left, and that decides whether a call may be tried again
(`placement.store.etcd_errors`).

**Within the call's time limit** a call is tried until a member does it, so a restart of etcd or an election that is
shorter is no error. What may have been done is tried again only if doing it twice is the same as once.

**The token** is fetched before the first call, and again when a member does not know it: it expires, and a restarted
etcd has forgotten it. Many calls that are refused together fetch one.

Deliberately absent: what requests mean (`placement.store.etcd`), following a watch (`placement.store.etcd_watch`), and
gRPC itself (`placement.store.etcd_member`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator

from placement.errors import StoreClosed
from placement.store.etcd_api.generated import etcd_pb2
from placement.store.etcd_api.methods import AUTHENTICATE, Method, Request, Response
from placement.store.etcd_errors import CallFailure, Verdict, lost, refusal, unreachable
from placement.store.etcd_member import Member
from placement.store.etcd_options import EtcdOptions

RETRY_FIRST_S = 0.05
RETRY_MAX_S = 1.0
"""Between rounds over all members."""
TOKENS_AT_ONCE = 2
"""Tokens in a row that may be refused before a call waits between them."""


class Connection:
    """Calls to one etcd. Belongs to the event loop that made it. Raises StoreRefused when its files cannot be read."""

    def __init__(self, options: EtcdOptions) -> None:
        self.options = options
        self._members = [Member(endpoint, options) for endpoint in options.endpoints]
        self._current = 0
        self._token = ""
        self._token_lock = asyncio.Lock()
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @property
    def member(self) -> Member:
        """The one that is asked now."""
        return self._members[self._current]

    def move_on_from(self, member: Member) -> None:
        """This member is no good now: the next one is asked from here on, unless somebody has moved on already."""
        if self.member is member:
            self._current = (self._current + 1) % len(self._members)

    def check_open(self) -> None:
        """Raise StoreClosed once `close` was called."""
        if self._closed:
            raise StoreClosed("the store is closed: this process is stopping")

    async def call(self, method: Method[Request, Response], request: Request, *, repeatable: bool) -> Response:
        """One request, one answer, from whichever member. `repeatable`: doing it twice is the same as once.

        Raises StoreUnavailable, StoreRefused, StoreClosed; CallFailure with the verdict ANSWER for what etcd answered.
        """
        self.check_open()
        with self._counted():
            return await self._call(method, request, repeatable)

    async def token(self, member: Member, limit_s: float) -> str:
        """The token for a call now; empty without a user. Raises CallFailure."""
        if not self.options.user or self._token:
            return self._token
        try:
            async with asyncio.timeout(limit_s), self._token_lock:
                if not self._token:
                    request = etcd_pb2.AuthenticateRequest(name=self.options.user, password=self.options.password)
                    self._token = (await member.call(AUTHENTICATE, request, limit_s, "")).token
                return self._token
        except TimeoutError:
            raise CallFailure(member.endpoint, "DEADLINE_EXCEEDED", "no token within the time limit") from None

    def forget_token(self, token: str) -> None:
        """A member did not know this one: the next call fetches another."""
        if self._token == token:
            self._token = ""

    async def close(self) -> None:
        """Let the calls that run end, then hang up. Idempotent."""
        self._closed = True
        await self._idle.wait()
        for member in self._members:
            await member.close()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _call(self, method: Method[Request, Response], request: Request, repeatable: bool) -> Response:
        began_s = time.monotonic()
        until_s = began_s + self.options.call_timeout_s
        failures: dict[str, CallFailure] = {}
        tokens_refused = 0
        pause_s = RETRY_FIRST_S
        for attempt in itertools.count(1):
            member = self.member
            left_s = until_s - time.monotonic()
            # What can be repeated leaves time to ask another member, in case this one says nothing at all.
            limit_s = left_s / 2 if repeatable and len(self._members) > 1 else left_s
            token, sent = "", False
            try:
                token = await self.token(member, limit_s)
                sent = True
                return await member.call(method, request, limit_s, token)
            except CallFailure as failure:
                if failure.verdict is Verdict.ANSWER:
                    raise
                if failure.verdict is Verdict.REFUSED:
                    raise refusal(failure, self.options) from failure
                self.move_on_from(member)
                if failure.verdict is Verdict.LOST and sent and not repeatable:
                    raise lost(failure) from failure
                failures[failure.endpoint] = failure
                if failure.verdict is Verdict.TOKEN:
                    self.forget_token(token)
                    tokens_refused += 1
                    if tokens_refused <= TOKENS_AT_ONCE:
                        continue
                round_over = attempt % len(self._members) == 0
                if self._is_in_vain(failures) or (round_over and time.monotonic() + pause_s >= until_s):
                    raise unreachable(failures, time.monotonic() - began_s, self.options) from failure
            if round_over:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
        raise AssertionError("unreachable")

    def _is_in_vain(self, failures: dict[str, CallFailure]) -> bool:
        if self._closed:
            return True
        return len(failures) == len(self._members) and all(
            failure.verdict is Verdict.NOT_TRUSTED for failure in failures.values()
        )
