"""Every limit of the placement service in one place: unit in the name, a default, and the reason for it.

Thresholds of single decisions lie with their policies; here is how often, how many and how long.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from placement.orders import OrderLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """What the leader may do, and how often it looks."""

    turn_every_s: float = 1.0
    """Pods publish once a second, so looking more often sees nothing new; a change that matters wakes it earlier."""

    debounce_s: float = 0.1
    """A pod that dies changes thousands of copies in several batches: one turn for all of them."""

    recheck_every_s: float = 30.0
    """Every model is looked at once in this time, whatever events said. Bounds the harm of a missed event."""

    chunk_models: int = 2000
    """Models whose records or copies are glanced at before the loop may answer requests: about a millisecond."""

    orders_per_turn_max: int = 256
    """Orders given, or places sought in vain, in one turn. Pods queue loads; more would be planned from a picture that
    is old by then."""

    orders_per_chunk: int = 8
    """Places sought before the loop may answer requests: each takes up to a millisecond in a large pool."""

    unplaced_retried_max: int = 64
    """Models without a place that a periodic check tries again; all of them are when a pod joins or grows."""

    losses_kept_s: float = 60.0
    """A pod that begins to lead restores what it saw go in this time: the leader before it may have gone with it."""

    restoring_per_pod_max: int = 4
    """Loads of lost models queued on one pod at a time, so that a request's own cold load does not wait behind."""

    lost_for_s: float = 1800.0
    """A lost model that has found no place by then is left to be loaded by a request."""

    unplaced_pause_s: float = 5.0
    """A lost model without a place for now is tried again after this."""

    pods_join_quiet_s: float = 3.0
    """A cold pool has gathered when no pod has joined for this long ..."""

    pods_join_within_s: float = 15.0
    """... or after this at the latest."""

    heat_half_life_s: float = 300.0
    """A restore after a pod's loss must still know what was hot; a day's rhythm should not be remembered."""

    heat_models_max: int = 50_000
    """Hot models remembered, about 10 MB."""

    heat_min_per_s: float = 1 / 600
    """Cooler than a request in ten minutes is cold: not restored, not handed over."""

    hot_written_every_s: float = 60.0
    """How old the next leader's knowledge of what is hot may be."""

    hot_models_max: int = 1000
    """Written for the next leader: with a Zipf load about 90 % of the traffic."""

    kept_history_s: float = 600.0
    """A pod that was away for less resumes its watch; one that was away longer lists everything anew."""

    compacted_every_s: float = 120.0
    """How often the store is told to forget. It grows by every change of every copy in between."""

    alias_retry_first_s: float = 5.0
    """After a transition failed for a reason that may pass."""

    alias_retry_max_s: float = 300.0
    """Doubles up to this. A new spec or target is tried at once."""

    split_prepared_within_s: float = 600.0
    """Models that a split gave a share so long ago, by this pod's wall clock, are not loaded by a new leader."""

    surplus_after_s: float = 3.0
    """Copies that nobody ordered stand side by side so long: the orders of a pod that drains show within it."""

    surplus_inherited_after_s: float = 12.0
    """For what a new leader finds. Pods publish each second, so demand has shown by then; below two lease ttls."""

    rebalance_every_s: float = 15.0
    """Pressure builds up over minutes; moves cost loads."""

    move_within_s: float = 600.0
    """A copy that has not arrived by then stays where it was."""

    death_grace_s: float = 2.0
    """A pod that has left the view and comes back as the same process within this did not die."""

    proves_alive_s: float = 60.0
    """A pod that was taken for dead and is there after this is alive: twice the lease and its fading."""

    restore_look_every_s: float = 2.0
    """How often the leader looks whether the store has lost registrations: one read of a few keys."""

    restore_gathers_s: float = 10.0
    """How long all pods have to notice the loss, so that the one that knows most is heard first."""

    export_within_s: float = 60.0
    """For one pod to tell its names: 100,000 are some 25 MB."""

    close_within_s: float = 5.0
    """For orders on their way, when the pod stops."""

    orders: OrderLimits = field(default_factory=OrderLimits)

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, int | float) and value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
