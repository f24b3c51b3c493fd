"""Which transport serves: the quick one where it can, and why not where it cannot."""

from __future__ import annotations

import pytest

from mesh.transport.base import ListenAddress
from mesh.transport.choosing import TransportMissing, choose_transport

LOOPBACK = (ListenAddress("127.0.0.1:8033"), ListenAddress("[::1]:8034", tenant="blue"), ListenAddress("unix:/run/pod"))


@pytest.mark.parametrize(
    ("wanted", "addresses", "is_pooled", "is_here", "name", "why"),
    [
        ("auto", LOOPBACK, False, True, "native", "only this machine"),
        ("auto", LOOPBACK, True, True, "grpcio", "several pods"),
        ("auto", LOOPBACK, False, False, "grpcio", "pip install pygrpc-native"),
        ("auto", (ListenAddress("0.0.0.0:8033"),), False, True, "grpcio", "0.0.0.0 is reached from elsewhere"),
        ("auto", (*LOOPBACK, ListenAddress("10.0.0.7:1")), False, True, "grpcio", "10.0.0.7 is reached from elsewhere"),
        ("auto", (ListenAddress("localhost:8033"),), False, True, "grpcio", "localhost is a name"),
        ("grpcio", LOOPBACK, False, True, "grpcio", "asked for"),
        ("native", (ListenAddress("0.0.0.0:8033"),), True, True, "native", "asked for"),
    ],
)
def test_the_quick_transport_serves_where_it_can_and_the_choice_says_why(
    wanted, addresses, is_pooled, is_here, name, why
):
    choice = choose_transport(wanted, addresses, is_pooled=is_pooled, native_is_here=is_here)
    assert choice.name == name
    assert why in choice.why


def test_asking_for_a_transport_that_is_not_installed_says_how_to_install_it():
    with pytest.raises(TransportMissing, match="pip install pygrpc-native"):
        choose_transport("native", LOOPBACK, is_pooled=False, native_is_here=False)
