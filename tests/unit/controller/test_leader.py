"""Who may take a lease, by the candidate's own clock."""

from __future__ import annotations

import pytest

from controller.leader import Seen, may_take


@pytest.mark.parametrize(
    ("holder", "seen_s", "now_s", "may"),
    [
        ("", 0.0, 1.0, True),
        ("me", 0.0, 1.0, True),
        ("other", 0.0, 14.0, False),
        ("other", 0.0, 15.5, True),
    ],
    ids=["nobody's", "its own", "another's, renewed lately", "another's, silent for its duration"],
)
def test_a_lease_is_taken_when_nobody_can_be_acting_by_it(holder: str, seen_s: float, now_s: float, may: bool) -> None:
    # The time that is written there is far away: clocks of others do not count.
    lease = {"spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": "2001-01-01T00:00:00.000000Z"}}
    assert may_take(lease, "me", Seen((holder, "x"), seen_s), now_s) is may
