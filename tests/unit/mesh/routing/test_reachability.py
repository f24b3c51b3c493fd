"""What a row of probes says of a peer."""

from __future__ import annotations

import pytest

from mesh.routing.reachability import Answer, Reachability, after_probe

GOOD, SILENT, REFUSED, STALLED = Answer.GOOD, Answer.SILENT, Answer.REFUSED, Answer.STALLED


def after(*answers: Answer, start: Reachability | None = None) -> Reachability:
    peer = start or Reachability()
    for second, answer in enumerate(answers, 1):
        peer = after_probe(peer, answer, float(second))
    return peer


@pytest.mark.parametrize(
    ("answers", "up"),
    [
        ((), True),
        ((SILENT,), True),
        ((SILENT, GOOD, SILENT), True),
        ((SILENT, SILENT), False),
        ((SILENT, STALLED, SILENT), False),
        ((STALLED,) * 9, True),
        ((REFUSED,), False),
        ((REFUSED, GOOD), False),
        ((REFUSED, GOOD, GOOD), True),
        ((REFUSED, GOOD, SILENT, GOOD), False),
        ((REFUSED, GOOD, STALLED, GOOD), True),
    ],
)
def test_two_silences_or_one_refusal_put_a_peer_out_and_two_answers_bring_it_back(
    answers: tuple[Answer, ...], up: bool
) -> None:
    assert after(*answers).up is up


def test_it_is_remembered_why_a_peer_is_out_and_when_it_last_answered() -> None:
    peer = after(GOOD, GOOD, SILENT, SILENT)
    assert (peer.why, peer.last_good_s) == (SILENT.value, 2.0)
    assert after(REFUSED).why == REFUSED.value
