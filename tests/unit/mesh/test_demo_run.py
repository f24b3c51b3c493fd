"""What the demo does not count must not go wrong unseen."""

from __future__ import annotations

import pytest

from mesh.demo.run import DemoFailed, refuse_faults


def test_a_fault_before_the_counted_requests_ends_the_demo_and_says_what_it_was() -> None:
    refuse_faults({"errors": 0, "wrong": 0, "complaints": []}, "the first loads")
    for fault in ("errors", "wrong"):
        asked = {"errors": 0, "wrong": 0, "complaints": ["iris: UNAVAILABLE: a race"]} | {fault: 2}
        with pytest.raises(DemoFailed, match=r"the first loads: .*iris: UNAVAILABLE: a race"):
            refuse_faults(asked, "the first loads")
