"""What a scrape tells of a pod's part in its pool."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from mesh.routing.figures import pool_samples
from mesh.telemetry import Telemetry


def test_a_scrape_tells_what_is_sent_on_and_who_is_missing() -> None:
    router: Any = SimpleNamespace(forwarded=7, retried=2)
    probes: Any = SimpleNamespace(down=frozenset({"p1"}))
    outlying: Any = SimpleNamespace(slow=frozenset({"p2", "p3"}))
    membership: Any = SimpleNamespace(store_away_since_s=90.0, is_leader=True)
    scraped = CollectorRegistry()
    telemetry = Telemetry(scraped)
    telemetry.add_samples(lambda: pool_samples(router, probes, outlying, membership, lambda: 100.0))
    lines = generate_latest(scraped).decode().splitlines()
    for line in (
        "hexcomb_forwarded_total 7.0",
        "hexcomb_retried_total 2.0",
        "hexcomb_peers_unreachable 1.0",
        "hexcomb_peers_slow 2.0",
        "hexcomb_leader 1.0",
        "hexcomb_store_away_seconds 10.0",
    ):
        assert line in lines
    membership.store_away_since_s = None
    assert "hexcomb_store_away_seconds 0.0" in generate_latest(scraped).decode()
