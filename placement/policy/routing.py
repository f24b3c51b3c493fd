"""Which copy answers a request: this pod's own, one that another pod has, one that is being loaded, or none yet.

A copy here costs no hop, so it is preferred until it is saturated and another holder has less to do. Among other
holders the choice is between two, drawn from a hash of the model's name and the request's ordinal, and the lesser
loaded of the two takes it: with two choices no copy gets far ahead of the others, while taking the least loaded of
all would send every ingress pod to the same one until its record is a second younger. Load is what this pod has under
way to a holder, known to the moment, plus what the holder last published.

While a new generation comes in copy by copy, the old one answers until half of the copies have the new one, and the
new one from then on: no moment leaves a hot model with less than half of its copies, and generations do not alternate
from one request to the next. Copies of the other generation answer where they are, for requests that arrive there and
would find nothing older. So a pod whose registry lags behind does not refuse what others already serve, either.

A forwarded request is never forwarded again. Where it arrives in vain, the answer names a holder, if one is known, and
the ingress pod goes on from there.

Deliberately absent: latencies (`outliers` takes slow pods out of `healthy`), and the choice of a pod that loads, which
is asked for only when nobody has or loads the model (`load_choice`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from placement.policy.rendezvous import closest, two_of
from placement.policy.snapshot import Copy, ModelName, Pod, PoolView


class Mode(Enum):
    """What a forwarded request expects where it goes."""

    HIT = "hit"
    """A servable copy."""
    JOIN = "join"
    """A copy that is being loaded: wait for it."""
    LOAD = "load"
    """Nothing: load it, then answer."""


class RunHere(NamedTuple):
    """This pod's own copy answers."""

    generation: int
    joins: bool = False
    """It is being loaded here; wait for it."""


class Forward(NamedTuple):
    """The copy on another pod answers."""

    pod: str
    mode: Mode
    generation: int


class Load(NamedTuple):
    """Nobody has it or loads it: ask `choose_load_pod` where to load this generation."""

    generation: int


class NotHere(NamedTuple):
    """The request was forwarded to this pod, which cannot answer it; it goes back, with a holder if one is known."""

    holder: str | None


Route = RunHere | Forward | Load | NotHere


def choose_route(
    view: PoolView,
    name: ModelName,
    generation: int,
    *,
    self_pod: str,
    servable_here: int,
    loading_here: bool,
    here_in_flight: int,
    here_limit: int,
    forwarded: bool,
    healthy: Container[str],
    in_flight: Mapping[str, int],
    excluded: Container[str],
    ordinal: int,
) -> Route:
    """Choose who answers a request for `generation` (the registered one).

    `servable_here` is the generation that this pod serves now, 0 for none, `loading_here` whether it loads
    `generation`: the own cache knows both before the view does. `here_in_flight` requests are at the own copy, which
    runs up to `here_limit` at a time (0: as many as come). `in_flight` are ours at other pods. `excluded` were tried
    for this request; `ordinal` counts the ingress pod's requests.
    """
    own = servable_here if self_pod not in excluded else 0
    if forwarded:
        if own:
            return RunHere(own)
        if loading_here and self_pod not in excluded:
            return RunHere(generation, joins=True)

    serving, loading = _elsewhere(view, name, generation, self_pod, healthy, excluded)
    if forwarded:
        holders = [copy.pod for copy in serving] or [copy.pod for copy in loading]
        return NotHere(closest(name, holders) if holders else None)

    # 1. A copy here, if it is of the generation that answers, or newer.
    answers = _answering_generation(serving, own)
    peers = [copy for copy in serving if copy.servable == answers]
    if own and own >= answers:
        if not (here_limit and here_in_flight >= here_limit and own == answers and peers):
            return RunHere(own)
        pod = choose_copy(view, name, peers, in_flight, ordinal)
        return Forward(pod, Mode.HIT, answers) if load_of(pod, view, in_flight) < here_in_flight else RunHere(own)
    # 2. A copy elsewhere; 3. one that is being loaded, here before elsewhere; 4. none.
    if peers:
        return Forward(choose_copy(view, name, peers, in_flight, ordinal), Mode.HIT, answers)
    if loading_here and self_pod not in excluded:
        return RunHere(generation, joins=True)
    if loading:
        return Forward(closest(name, [copy.pod for copy in loading]), Mode.JOIN, generation)
    return Load(generation)


def choose_copy(
    view: PoolView, name: ModelName, copies: Sequence[Copy], in_flight: Mapping[str, int], ordinal: int
) -> str:
    """The pod of one of these copies (at least one), by power of two choices. The path of every forwarded request."""
    if len(copies) == 1:
        return copies[0].pod
    one, other = two_of(name, ordinal, len(copies))
    first, second = copies[one].pod, copies[other].pod
    first_load, second_load = load_of(first, view, in_flight), load_of(second, view, in_flight)
    # 1. The lesser load; 2. of equals the one that the model prefers by hash.
    if first_load != second_load:
        return first if first_load < second_load else second
    return closest(name, (first, second))


def serving_elsewhere(
    view: PoolView, name: ModelName, *, self_pod: str, healthy: Container[str]
) -> tuple[tuple[Copy, ...], int]:
    """The copies, and their generation, among which `choose_route` chooses for a pod that has none itself; it may be
    asked once for many requests, while the view and the healthy pods stay what they are."""
    serving, _ = _elsewhere(view, name, 0, self_pod, healthy, ())
    answers = _answering_generation(serving, 0)
    return tuple(copy for copy in serving if copy.servable == answers), answers


def load_of(pod_id: str, view: PoolView, in_flight: Mapping[str, int]) -> int:
    """Requests at a pod: ours under way, and what it last said of itself."""
    pod: Pod | None = view.pods.get(pod_id)
    return in_flight.get(pod_id, 0) + (pod.requests_in_flight if pod is not None else 0)


def _elsewhere(
    view: PoolView, name: ModelName, generation: int, self_pod: str, healthy: Container[str], excluded: Container[str]
) -> tuple[list[Copy], list[Copy]]:
    """Copies that serve any generation, and copies that load this one, on pods that can be asked.

    Pods that are ready and not draining, if any; others only where there is no such copy.
    """
    serving: list[Copy] = []
    loading: list[Copy] = []
    leaving_serving: list[Copy] = []
    leaving_loading: list[Copy] = []
    pods = view.pods
    for copy in view.copies.get(name, ()):
        pod_id = copy.pod
        if pod_id == self_pod or pod_id not in healthy or pod_id in excluded:
            continue
        pod = pods.get(pod_id)
        if pod is None:
            continue
        staying = pod.ready and not pod.draining
        if copy.servable:
            (serving if staying else leaving_serving).append(copy)
        if copy.loading == generation:
            (loading if staying else leaving_loading).append(copy)
    return serving or leaving_serving, loading or leaving_loading


def _answering_generation(serving: Sequence[Copy], own: int) -> int:
    """The newest generation that at least half of the copies have reached; 0 where there are none."""
    generations = sorted(copy.servable for copy in serving)
    if own:
        generations.append(own)
        generations.sort()
    return generations[len(generations) // 2] if generations else 0
