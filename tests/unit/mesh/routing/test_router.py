"""The tries of one request: who is asked, what is learned from each answer, and what the client hears."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from math import inf
from typing import Any

import pytest

from cache.types import Refusal, RefusalKind
from mesh.loading.loading import Refused
from mesh.routing.hop import Hop, hop_of, not_here, why_not_here
from mesh.routing.router import FirstTry, Router
from mesh.routing.ways import METADATA_BYTES_MAX
from mesh.transport.base import Call, Heard, LineBroken, Metadata, Reply, StatusCode, TransportError
from mesh.wire.messages import MODEL_INFER
from placement.membership import Claim, Claimed, HeldBy, StoreAway
from placement.policy.snapshot import ModelFacts, ModelName, Pod, PoolView, Suspicion, Verdict
from placement.records import ModelRecord, ModelSpec
from tests.unit.placement.policy.builders import copy, name, pod, view

RECORD = ModelRecord("t", "m", ModelSpec("file:///m"), 1, 0.0, 0.0, revision=7)
PODS = [pod("me"), pod("p1"), pod("p2"), pod("p3")]
CALL = Call(MODEL_INFER.path, b"body", (("mm-model-id", "m"),))

Answer = Callable[[Hop], Awaitable[Reply]]


class Lines:
    """`Links` whose calls reach the pool below."""

    def __init__(self, mesh: Pool) -> None:
        self.in_flight: dict[str, int] = {}
        self.call = mesh.call
        self.begun: list[tuple[str, Metadata, Heard]] = []

    def begin(
        self, pod_id: str, path: str, body: bytes, metadata: Metadata, deadline_s: float | None, heard: Heard
    ) -> Callable[[], None]:
        self.begun.append((pod_id, metadata, heard))
        return lambda: None


class Pool:
    """A router of pod `me`, and peers whose answers the test writes."""

    def __init__(self, picture: PoolView) -> None:
        self.view = picture
        self.claims: list[Claim] = []
        self.claimed = 0
        self.claim_gate = asyncio.Event()
        self.claim_gate.set()
        self.store_away_since_s: float | None = None
        self.asked: list[tuple[str, Hop]] = []
        self.peers: dict[str, Answer] = {}
        self.down: frozenset[str] = frozenset()
        self.slow: frozenset[str] = frozenset()
        self.broken: list[str] = []
        self.deaths: list[Any] = []
        self.observed: list[str] = []
        self.published: list[ModelName] = []
        self.servable = 0
        self.loading = False
        self.draining = False
        self.ran_here = 0
        self.now_s = 0.0
        self.here: Callable[[float], Awaitable[Reply]] = self.answer_here
        itself: Any = self
        self.lines = Lines(self)
        lines: Any = self.lines
        self.router = Router(
            "me",
            itself,
            itself,
            itself,
            lines,
            itself,
            itself,
            itself,
            lambda record: ModelFacts(ModelName(record.tenant, record.id), record.generation, 100),
            slow_pods=lambda: self.slow,
            observe=lambda pod_id, model, seconds: self.observed.append(pod_id),
            is_draining=lambda: self.draining,
            attempts_max=8,
            tells_owner=False,
            clock=lambda: self.now_s,
        )

    # what the router asks of its surroundings
    async def claim(self, model: ModelName, generation: int, size_bytes: int, *, ignoring: Any = ()) -> Claim:
        self.claimed += 1
        await self.claim_gate.wait()
        return self.claims.pop(0) if self.claims else Claimed()

    async def call(
        self, pod_id: str, path: str, body: bytes | memoryview, metadata: Metadata, deadline_s: float | None
    ) -> Reply:
        hop = hop_of(Call(path, body, metadata, deadline_s))
        assert hop is not None
        assert (path, body, dict(metadata)["hexcomb-tenant"]) == (CALL.method, CALL.body, "t")
        self.asked.append((pod_id, hop))
        return await self.peers[pod_id](hop)

    def broke(self, pod_id: str) -> None:
        self.broken.append(pod_id)

    async def heed_retries(self, call: Call, model: ModelName, generation: int) -> None: ...

    async def heed_loads(self, model: ModelName, generation: int) -> None: ...

    async def first_death(self, model: ModelName, generation: int, pod: str, incarnation: str) -> None: ...

    async def killed(self, model: ModelName, generation: int, deaths: Any) -> None:
        self.deaths.append(list(deaths))

    def servable_generation(self, model: ModelName) -> int:
        return self.servable

    def is_loading(self, model: ModelName, generation: int) -> bool:
        return self.loading

    def in_flight(self, model: ModelName) -> int:
        return 0

    def limit(self, model: ModelName) -> int:
        return 0

    def publish(self, model: ModelName) -> None:
        self.published.append(model)

    # what the test says
    async def answer_here(self, space_wait_s: float) -> Reply:
        self.ran_here += 1
        return b"here"

    def answers(self, pod_id: str, reply: bytes | Exception) -> None:
        async def answer(hop: Hop) -> Reply:
            if isinstance(reply, Exception):
                raise reply
            return reply

        self.peers[pod_id] = answer

    async def ask(self, record: ModelRecord = RECORD) -> Reply:
        return await self.router.from_client(CALL, "t", record, self.here)

    async def ask_from(self, pod_id: str, *, load: bool) -> Reply:
        return await self.router.from_pod(Hop(pod_id, "m", 1, 7, load), RECORD, self.here)

    @property
    def asked_pods(self) -> list[str]:
        return [pod_id for pod_id, _ in self.asked]


def pool(*holders: str, servable: int = 1, loading: int = 0, pods: list[Pod] | None = None) -> Pool:
    copies = {"m": [copy(holder, servable, loading) for holder in holders]} if holders else {}
    made = Pool(view(pods or PODS, copies))
    return made


def refused(kind: RefusalKind) -> Refused:
    return Refused(Refusal(kind, f"it is {kind.value}", 1.0))


async def test_a_copy_elsewhere_answers() -> None:
    mesh = pool("p1")
    mesh.answers("p1", b"there")
    assert await mesh.ask() == b"there"
    assert mesh.asked == [("p1", Hop("me", "m", 1, 7, load=False))]
    assert mesh.router.forwarded == 1


async def test_a_cold_model_is_loaded_where_placement_says_and_claimed_if_that_is_here() -> None:
    mesh = pool(pods=[pod("me")])
    assert await mesh.ask() == b"here"
    assert (mesh.claimed, mesh.ran_here) == (1, 1)

    elsewhere = pool(pods=[pod("me", ready=False), pod("p1")])
    elsewhere.answers("p1", b"there")
    assert await elsewhere.ask() == b"there"
    assert elsewhere.asked == [("p1", Hop("me", "m", 1, 7, load=True))]
    assert elsewhere.claimed == 0


async def test_who_loses_the_claim_goes_to_the_winner() -> None:
    mesh = pool(pods=[pod("me"), pod("p1", ready=False)])
    mesh.claims = [HeldBy((copy("p1", 0, 1),))]
    mesh.answers("p1", b"there")
    assert await mesh.ask() == b"there"
    assert mesh.asked == [("p1", Hop("me", "m", 1, 7, load=False))]
    assert mesh.ran_here == 0


async def test_a_winner_that_cannot_be_reached_does_not_keep_the_model_from_being_served() -> None:
    mesh = pool(pods=[pod("me"), pod("p1", ready=False)])
    mesh.down = frozenset({"p1"})
    mesh.claims = [HeldBy((copy("p1", 0, 1),))]
    assert await mesh.ask() == b"here"


async def test_with_the_store_away_the_model_is_loaded_all_the_same() -> None:
    mesh = pool(pods=[pod("me")])
    mesh.claims = [StoreAway("no answer")]
    assert await mesh.ask() == b"here"
    mesh.store_away_since_s = 1.0
    assert await mesh.ask() == b"here"
    assert mesh.claimed == 1, "a store that is known to be away is not asked"


async def test_many_requests_for_one_cold_model_make_one_claim() -> None:
    mesh = pool(pods=[pod("me")])
    mesh.claim_gate.clear()
    waiting = [asyncio.create_task(mesh.ask()) for _ in range(50)]
    await asyncio.sleep(0)
    mesh.claim_gate.set()
    assert await asyncio.gather(*waiting) == [b"here"] * 50
    assert mesh.claimed == 1


async def test_only_calls_of_a_copy_that_serves_tell_how_fast_its_pod_is() -> None:
    refusal = TransportError(StatusCode.DEADLINE_EXCEEDED, "it takes longer")
    for reply in (b"there", refusal):
        joined, loaded, serving = pool("p1", servable=0, loading=1), pool(), pool("p1")
        for mesh in (joined, loaded, serving):
            for pod_id in ("p1", "p2", "p3"):
                mesh.answers(pod_id, reply)
            while not mesh.asked:  # cold, it may be loaded here
                with contextlib.suppress(TransportError):
                    await mesh.router.from_client(CALL, "t", RECORD, _draining)
        assert (joined.observed, loaded.observed) == ([], []), "they waited for a load"
        assert serving.observed == ["p1"]


async def _draining() -> Reply:
    raise refused(RefusalKind.DRAINING)


async def test_a_pod_that_vanished_is_probed_and_another_one_answers() -> None:
    mesh = pool("p1", "p2")
    mesh.answers("p1", LineBroken("reset", sent=True))
    mesh.answers("p2", LineBroken("reset", sent=True))
    first = (await _first_asked(mesh))[0]
    other = "p2" if first == "p1" else "p1"
    mesh.answers(other, b"there")
    mesh.asked.clear()
    mesh.broken.clear()
    mesh.answers(first, LineBroken("reset", sent=True))
    for _ in range(8):
        assert await mesh.ask() == b"there"
    assert set(mesh.broken) <= {first}
    assert mesh.deaths == [[(first, f"{first}-1"), (other, f"{other}-1")]]


async def _first_asked(mesh: Pool) -> list[str]:
    with pytest.raises(TransportError):
        await mesh.ask()
    return mesh.asked_pods


async def test_a_request_over_which_two_pods_died_is_not_tried_on_a_third() -> None:
    mesh = pool("p1", "p2", "p3")
    for pod_id in ("p1", "p2", "p3"):
        mesh.answers(pod_id, LineBroken("reset", sent=True))
    with pytest.raises(TransportError) as error:
        await mesh.ask()
    assert error.value.status is StatusCode.INTERNAL
    assert len(mesh.asked) == 2
    assert len(mesh.deaths) == 1


async def test_lines_that_this_pod_cut_are_no_deaths() -> None:
    mesh = pool("p1", "p2", "p3")
    for pod_id in ("p1", "p2"):
        mesh.answers(pod_id, LineBroken("silent", sent=True, cut=True))
    mesh.answers("p3", b"there")
    for _ in range(6):
        assert await mesh.ask() == b"there"
    assert mesh.deaths == []


async def test_not_here_leads_to_the_holder_that_is_named() -> None:
    mesh = pool("p1")
    mesh.answers("p1", not_here("absent", "evicted", "p3"))
    mesh.answers("p3", b"there")
    assert await mesh.ask() == b"there"
    assert mesh.asked_pods == ["p1", "p3"]


async def test_pods_that_name_one_another_count_as_tries() -> None:
    many = [f"p{number:02}" for number in range(1, 21)]
    mesh = pool("p01", pods=[pod("me", ready=False), *(pod(each) for each in many)])
    for each, following in itertools.pairwise([*many, "p01"]):
        mesh.answers(each, not_here("absent", "evicted", following))
    with pytest.raises(TransportError, match="evicted"):
        await mesh.ask()
    assert mesh.asked_pods == many[:8]
    assert mesh.router.retried == 8


async def test_a_pod_whose_copy_has_gone_may_load_it_again() -> None:
    mesh = pool("p1", pods=[pod("me", ready=False), pod("p1")])
    asked: list[bool] = []

    async def evicted_a_moment_ago(hop: Hop) -> Reply:
        asked.append(hop.load)
        if not hop.load:
            raise not_here("absent", "evicted")
        return b"loaded again"

    mesh.peers["p1"] = evicted_a_moment_ago
    assert await mesh.ask() == b"loaded again"
    assert asked == [False, True]


async def test_what_the_store_says_of_this_very_pod_does_not_keep_it_from_loading_when_nobody_else_can() -> None:
    mesh = pool(pods=[pod("me", ready=False)])
    assert await mesh.ask() == b"here"
    mesh = pool(pods=[pod("me", ready=False, capacity_bytes=1)])
    with pytest.raises(TransportError):
        await mesh.ask()


async def test_a_load_that_began_here_meanwhile_is_joined() -> None:
    mesh = pool(pods=[pod("me", ready=False), pod("p1")])

    async def held_by_the_one_that_asks(hop: Hop) -> Reply:
        mesh.loading = True
        raise not_here("held", "claimed", "me")

    mesh.peers["p1"] = held_by_the_one_that_asks
    assert await mesh.ask() == b"here"


async def test_an_old_record_of_the_pod_that_asks_does_not_keep_another_from_loading() -> None:
    mesh = pool(pods=[pod("me", ready=False), pod("p1")])
    asked: list[bool] = []

    async def sees_an_old_record(hop: Hop) -> Reply:
        asked.append(hop.insists)
        if not hop.insists:
            raise not_here("held", "claimed", "me")
        return b"loaded"

    mesh.peers["p1"] = sees_an_old_record
    assert await mesh.ask() == b"loaded"
    assert asked == [False, True]


async def test_the_models_own_error_is_the_answer_and_nobody_else_is_asked() -> None:
    mesh = pool("p1", "p2")
    for pod_id in ("p1", "p2"):
        mesh.answers(pod_id, TransportError(StatusCode.INVALID_ARGUMENT, "input 'x' is missing"))
    with pytest.raises(TransportError, match="input 'x' is missing"):
        await mesh.ask()
    assert len(mesh.asked) == 1


async def test_what_one_pod_cannot_load_another_may() -> None:
    mesh = pool(pods=[pod("me"), pod("p1")])
    mesh.answers("p1", b"there")

    async def full(space_wait_s: float) -> Reply:
        raise refused(RefusalKind.FULL)

    mesh.here = full
    assert await mesh.ask() == b"there"
    assert mesh.asked_pods == ["p1"]


async def test_all_pods_without_room_together_cost_hardly_more_than_one() -> None:
    mesh = pool(pods=[pod("me"), pod("p1"), pod("p2"), pod("p3")])
    waited_s: list[float] = []

    async def full_here(space_wait_s: float) -> Reply:
        waited_s.append(space_wait_s)
        mesh.now_s += min(10.0, space_wait_s)
        raise refused(RefusalKind.FULL)

    async def full_there(hop: Hop) -> Reply:
        waited_s.append(hop.space_wait_s)
        mesh.now_s += min(10.0, hop.space_wait_s)
        raise replace_trailers(TransportError(StatusCode.RESOURCE_EXHAUSTED, "it is full", 2.0))

    mesh.here = full_here
    mesh.peers = dict.fromkeys(["p1", "p2", "p3"], full_there)
    with pytest.raises((TransportError, Refused)):
        await mesh.ask()
    assert waited_s == [inf, 1.5, 1.5, 1.5]


async def test_pods_that_refuse_at_once_leave_the_time_to_the_others() -> None:
    mesh = pool(pods=[pod("me"), pod("p1")])
    hops: list[Hop] = []

    async def pinned_full(space_wait_s: float) -> Reply:
        raise refused(RefusalKind.FULL)

    async def answer(hop: Hop) -> Reply:
        hops.append(hop)
        return b"there"

    mesh.here = pinned_full
    mesh.peers["p1"] = answer
    assert await mesh.ask() == b"there"
    assert [hop.space_wait_s for hop in hops] == [10.0]


async def test_what_is_left_of_the_wait_for_room_is_for_the_next_pod() -> None:
    mesh = pool(pods=[pod("me"), pod("p1")])
    hops: list[Hop] = []

    async def full(space_wait_s: float) -> Reply:
        mesh.now_s += 4.0
        raise refused(RefusalKind.FULL)

    async def answer(hop: Hop) -> Reply:
        hops.append(hop)
        return b"there"

    mesh.here = full
    mesh.peers["p1"] = answer
    assert await mesh.ask() == b"there"
    assert [hop.space_wait_s for hop in hops] == [6.0]


async def test_a_forwarded_request_waits_for_room_as_long_as_the_hop_says() -> None:
    mesh = pool()
    waited_s: list[float] = []

    async def here(space_wait_s: float) -> Reply:
        waited_s.append(space_wait_s)
        return b"here"

    mesh.here = here
    hop = Hop("p1", "m", 1, 7, load=True, space_wait_s=1.5)
    assert await mesh.router.from_pod(hop, RECORD, mesh.here) == b"here"
    assert waited_s == [1.5]


async def test_when_every_pod_refused_the_client_hears_the_last_refusal() -> None:
    mesh = pool(pods=[pod("me"), pod("p1")])
    mesh.answers("p1", replace_trailers(TransportError(StatusCode.RESOURCE_EXHAUSTED, "p1 is full", 2.0)))

    async def full(space_wait_s: float) -> Reply:
        raise refused(RefusalKind.FULL)

    mesh.here = full
    with pytest.raises((TransportError, Refused)) as error:
        await mesh.ask()
    assert "full" in str(error.value)
    assert mesh.published, "a claim that led to no load was withdrawn"


def replace_trailers(error: TransportError) -> TransportError:
    return TransportError(error.status, error.message, error.retry_after_s, not_here("full", "").trailers)


async def test_a_deadline_that_is_too_short_here_is_so_everywhere() -> None:
    mesh = pool(pods=[pod("me"), pod("p1")])

    async def late(space_wait_s: float) -> Reply:
        raise refused(RefusalKind.DEADLINE)

    mesh.here = late
    mesh.answers("p1", refused_elsewhere())
    with pytest.raises((Refused, TransportError)):
        await mesh.ask()
    assert mesh.ran_here == 0
    assert len(mesh.asked) <= 1


def refused_elsewhere() -> TransportError:
    return TransportError(StatusCode.DEADLINE_EXCEEDED, "too late")


async def test_a_full_holder_sheds_and_no_further_copy_is_loaded_for_it() -> None:
    mesh = pool("p1")
    mesh.answers("p1", TransportError(StatusCode.RESOURCE_EXHAUSTED, "10000 calls are in flight", 0.1))
    with pytest.raises(TransportError, match="in flight"):
        await mesh.ask()
    assert mesh.asked_pods == ["p1"]
    assert mesh.ran_here == 0


async def test_a_quarantined_model_is_refused_at_the_door_with_the_way_out() -> None:
    mesh = pool("p1")
    mesh.view = replace(mesh.view, suspicions={name(): Suspicion(1, Verdict.QUARANTINED, ())})
    with pytest.raises(TransportError, match="release it by hand") as error:
        await mesh.ask()
    assert error.value.status is StatusCode.FAILED_PRECONDITION
    with pytest.raises(TransportError, match="quarantined"):
        await mesh.ask_from("p1", load=True)


# Asked by another pod ------------------------------------------------------------------------------------------------


async def test_a_forwarded_request_is_answered_here_or_sent_back_never_on() -> None:
    mesh = pool("p1")
    with pytest.raises(TransportError) as error:
        await mesh.ask_from("p2", load=False)
    assert why_not_here(error.value) == ("absent", "p1")
    assert mesh.asked == []
    mesh.servable = 1
    assert await mesh.ask_from("p2", load=False) == b"here"


async def test_a_forwarded_request_waits_for_the_load_that_is_under_way_here() -> None:
    mesh = pool()
    mesh.loading = True
    assert await mesh.ask_from("p2", load=False) == b"here"
    assert mesh.claimed == 0


async def test_a_pod_asked_to_load_claims_first_and_names_who_was_quicker() -> None:
    mesh = pool()
    assert await mesh.ask_from("p2", load=True) == b"here"
    assert mesh.claimed == 1
    mesh.claims = [HeldBy((copy("p3", 0, 1),))]
    with pytest.raises(TransportError) as error:
        await mesh.ask_from("p2", load=True)
    assert why_not_here(error.value) == ("held", "p3")


async def test_a_draining_pod_loads_nothing_for_others() -> None:
    mesh = pool()
    mesh.draining = True
    with pytest.raises(TransportError) as error:
        await mesh.ask_from("p2", load=True)
    assert why_not_here(error.value) == ("draining", "")


async def test_what_cannot_be_loaded_here_goes_back_with_its_code_and_the_word_that_another_may() -> None:
    mesh = pool()

    async def full(space_wait_s: float) -> Reply:
        raise refused(RefusalKind.FULL)

    mesh.here = full
    with pytest.raises(TransportError) as error:
        await mesh.ask_from("p2", load=True)
    assert error.value.status is StatusCode.RESOURCE_EXHAUSTED
    assert why_not_here(error.value) == ("full", "")
    assert mesh.published, "the claim was withdrawn"


def sent_on(mesh: Pool) -> list[Reply | FirstTry]:
    """What is heard of a request that is sent on without waiting."""
    heard: list[Reply | FirstTry] = []
    assert mesh.router.forward_now(CALL, "kind", "t", RECORD, heard.append) is not None
    return heard


async def test_a_request_for_a_copy_elsewhere_is_sent_on_without_waiting_for_its_answer() -> None:
    mesh = pool("p1")
    heard = sent_on(mesh)
    sent_on(mesh)
    (pod_id, metadata, answer), (_, again, _) = mesh.lines.begun
    assert (pod_id, hop_of(Call("", b"", metadata))) == ("p1", Hop("me", "m", 1, RECORD.revision, load=False))
    assert dict(metadata)["hexcomb-tenant"] == "t"
    assert again is metadata, "it is made once for all that are alike"
    answer(b"there")
    assert heard == [b"there"]
    assert mesh.observed == ["p1"]
    assert mesh.router.forwarded == 1


def asked_now(mesh: Pool) -> str:
    """Who a request is sent on to now."""
    sent_on(mesh)
    return mesh.lines.begun[-1][0]


async def test_where_requests_are_sent_on_to_follows_every_change_of_what_it_depends_on() -> None:
    mesh = pool("p1", "p2")
    mesh.lines.in_flight = {"p1": 1}
    assert asked_now(mesh) == "p2"
    mesh.lines.in_flight = {"p2": 1}
    assert asked_now(mesh) == "p1", "the lesser load, at each request"
    mesh.down = frozenset({"p1"})
    assert asked_now(mesh) == "p2"
    mesh.down, mesh.slow = frozenset(), frozenset({"p2"})
    assert asked_now(mesh) == "p1"
    mesh.view = pool("p3").view
    assert asked_now(mesh) == "p3"
    mesh.servable = 1
    assert mesh.router.forward_now(CALL, "kind", "t", RECORD, lambda _: None) is None
    mesh.servable, newer = 0, replace(RECORD, revision=8)
    assert mesh.router.forward_now(CALL, "kind", "t", newer, lambda _: None) is not None
    hop = hop_of(Call("", b"", mesh.lines.begun[-1][1]))
    assert hop is not None
    assert hop.revision == 8


async def test_long_metadata_are_sent_on_and_not_kept() -> None:
    mesh = pool("p1")
    for kept, length in ((True, 10), (False, METADATA_BYTES_MAX)):
        other = replace(CALL, metadata=(("note", "x" * length),))
        for _ in range(2):
            assert mesh.router.forward_now(other, length, "t", RECORD, lambda _: None) is not None
        first, second = (metadata for _, metadata, _ in mesh.lines.begun[-2:])
        assert (first is second) is kept
        assert dict(second)["note"] == "x" * length


async def test_calls_with_other_metadata_are_sent_on_with_theirs() -> None:
    mesh = pool("p1")
    for kind in ("a", "b", "a"):
        other = replace(CALL, metadata=(("kind", kind),))
        assert mesh.router.forward_now(other, kind, "t", RECORD, lambda _: None) is not None
    assert [dict(metadata)["kind"] for _, metadata, _ in mesh.lines.begun] == ["a", "b", "a"]


@pytest.mark.parametrize("why", ["it is here", "it is being loaded", "nobody has it", "it is suspect"])
async def test_only_a_plain_hit_elsewhere_is_sent_on_without_waiting(why: str) -> None:
    mesh = pool(*([] if why == "nobody has it" else ["p1"]), servable=int(why != "it is being loaded"), loading=1)
    mesh.servable = int(why == "it is here")
    if why == "it is suspect":
        mesh.view = replace(mesh.view, suspicions={name("m"): Suspicion(1, Verdict.SUSPECT, ())})
    assert mesh.router.forward_now(CALL, "kind", "t", RECORD, lambda _: None) is None
    assert mesh.lines.begun == []


async def test_after_a_first_try_that_failed_the_request_goes_on_where_it_did_not_fail() -> None:
    mesh = pool("p1", "p2")
    heard = sent_on(mesh)
    (tried, _, answer) = mesh.lines.begun[0]
    answer(LineBroken("gone", sent=True))
    (first,) = heard
    assert isinstance(first, FirstTry)
    other = "p2" if tried == "p1" else "p1"
    mesh.answers(other, b"there")
    assert await mesh.router.from_client(CALL, "t", RECORD, mesh.here, first) == b"there"
    assert (mesh.asked_pods, mesh.broken, mesh.router.retried) == ([other], [tried], 1)


async def test_a_second_death_after_a_first_try_that_nobody_waited_for_is_the_second() -> None:
    mesh = pool("p1", "p2", "p3")
    heard = sent_on(mesh)
    (tried, _, answer) = mesh.lines.begun[0]
    answer(LineBroken("gone", sent=True))
    (first,) = heard
    assert isinstance(first, FirstTry)
    for pod_id in ("p1", "p2", "p3"):
        mesh.answers(pod_id, LineBroken("gone", sent=True))
    with pytest.raises(TransportError, match="2 pods died"):
        await mesh.router.from_client(CALL, "t", RECORD, mesh.here, first)
    assert len(mesh.asked) == 1
    assert mesh.deaths[0][0][0] == tried


async def test_the_models_own_error_is_the_answer_to_a_first_try_too() -> None:
    mesh = pool("p1", "p2")
    heard = sent_on(mesh)
    mesh.lines.begun[0][2](TransportError(StatusCode.INVALID_ARGUMENT, "three columns"))
    (first,) = heard
    assert isinstance(first, FirstTry)
    with pytest.raises(TransportError, match="three columns"):
        await mesh.router.from_client(CALL, "t", RECORD, mesh.here, first)
    assert mesh.asked == []
