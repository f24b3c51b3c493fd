"""Who may take a lease, by the candidate's own clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from controller import leader
from controller.leader import Leadership, Seen, may_take


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


class SlowAtFirst:
    """An API server whose first answer never comes."""

    def __init__(self) -> None:
        self.asked = 0
        self.lease: dict[str, Any] = {"spec": {}}

    async def get(self, kind: object, namespace: str, name: str) -> dict[str, Any]:
        self.asked += 1
        if self.asked == 1:
            await asyncio.Event().wait()
        return self.lease

    async def replace(self, kind: object, lease: dict[str, Any]) -> None:
        self.lease = lease


async def test_an_answer_that_comes_too_late_to_lead_by_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "RENEW_WITHIN_S", 0.2)
    monkeypatch.setattr(leader, "RETRY_S", 0.0)
    api = SlowAtFirst()
    leadership = Leadership(api, "n", "lease", "me")  # type: ignore[arg-type]
    async with asyncio.timeout(20):
        await leadership.acquire()
    assert leadership.is_held
    assert api.asked > 1
    assert api.lease["spec"]["holderIdentity"] == "me"
