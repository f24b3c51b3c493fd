"""A pod's part in its pool as lines of a scrape: requests sent on, peers that do not answer, the store's absence."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mesh.routing.outlying import Outlying
from mesh.routing.probes import Probes
from mesh.routing.router import Router
from mesh.telemetry import Sample
from placement.membership import Membership


def pool_samples(
    router: Router, probes: Probes, outlying: Outlying, membership: Membership, clock: Callable[[], float]
) -> Iterator[Sample]:
    """The figures as of now."""
    away_since_s = membership.store_away_since_s
    away_s = 0.0 if away_since_s is None else max(0.0, clock() - away_since_s)
    for name, says, value in (
        ("forwarded_total", "Requests of this pod's clients that other pods answered.", router.forwarded),
        (
            "retried_total",
            "Tries of requests on some pod that gave no answer, and were followed by others.",
            router.retried,
        ),
        ("peers_unreachable", "Pods that do not answer this one.", len(probes.down)),
        ("peers_slow", "Pods that answer, and too slowly to be sent requests.", len(outlying.slow)),
        ("leader", "1 when this pod runs the placement service.", int(membership.is_leader)),
        ("store_away_seconds", "How long the store has not answered; 0 while it does.", away_s),
    ):
        yield Sample(f"hexcomb_{name}", says, (), value)
