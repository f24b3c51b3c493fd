"""Which models are to be brought in beforehand, and when: `cache.prefetch` over this pod's state.

Of a copy that leaves, the next use is worked out once, and an alarm set; of models that are used together, the history
says so when one of them is used. Whether a model is then still worth bringing in is asked here as well. Changes
nothing of the state but what is foreseen.
"""

from __future__ import annotations

from cache.commands import Prefetch
from cache.copies import Copy
from cache.prefetch import expected_use
from cache.state import Foreseen, PodState
from cache.timers import Alarm
from cache.transitions import PENDING
from cache.types import ModelKey, WantedModel

ALARM = "prefetch"
"""The kind of alarm; its subject is the number of a history."""


def foresee(state: PodState, copy: Copy) -> None:
    """This copy leaves. If the next use of its model can be told, an alarm rings in time."""
    if not state.limits.prefetch or copy.key in state.retired:
        return
    period_min_s = state.limits.prefetch_period_min_s
    expected = expected_use(copy.history.picture(), copy.return_time_s, period_min_s)
    if expected is not None and expected.begin_s > state.now_s:
        state.expected[copy.history.number] = Foreseen(copy.model, expected.at_s)
        state.timers.set(Alarm(ALARM, copy.history.number), expected.begin_s)


def forget_foreseen(state: PodState, key: ModelKey) -> None:
    """This generation is not wanted any more."""
    history = state.histories.known(key)
    if history is not None and history.number in state.expected and state.expected[history.number].model.key == key:
        del state.expected[history.number]
        state.timers.cancel(Alarm(ALARM, history.number))


def prefetch_foreseen(state: PodState, number: int) -> list[Prefetch]:
    """The alarm has rung."""
    foreseen = state.expected.pop(number)
    return _worth(state, [Prefetch(foreseen.model, foreseen.at_s)])


def prefetch_followers(state: PodState) -> list[Prefetch]:
    """Models that usually follow those which were used just now."""
    followers, state.histories.expected = state.histories.expected, []
    return _worth(state, [Prefetch(model, state.now_s) for model in followers]) if state.limits.prefetch else []


def _worth(state: PodState, prefetches: list[Prefetch]) -> list[Prefetch]:
    """Those of models that are not here and may be, as long as few are on their way."""
    pending = sum(copy.prefetched for each in PENDING for copy in state.by_state[each].values())
    room = state.limits.prefetches_pending_max - pending
    return [each for each in prefetches if _may_come(state, each.model)][: max(0, room)]


def _may_come(state: PodState, model: WantedModel) -> bool:
    failure = state.failures.get(model.key, state.now_s)
    failed = failure is not None and failure.retry_at_s > state.now_s
    return not (state.draining or failed or model.key in state.current or model.key in state.retired)
