"""Which transport serves: the quick one where it can, and why not where it cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mesh.transport.base import ListenAddress
from mesh.transport.choosing import TransportMissing, choose_transport, why_no_native

LOOPBACK = (ListenAddress("127.0.0.1:8033"), ListenAddress("[::1]:8034", tenant="blue"), ListenAddress("unix:/run/pod"))


@pytest.mark.parametrize(
    ("wanted", "addresses", "is_pooled", "is_here", "name", "why"),
    [
        ("auto", LOOPBACK, False, True, "native", "only this machine"),
        ("auto", LOOPBACK, True, True, "grpcio", "several pods"),
        ("auto", LOOPBACK, True, False, "grpcio", "several pods"),
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
    missing = "" if is_here else "is not installed"
    choice = choose_transport(wanted, addresses, is_pooled=is_pooled, why_no_native=lambda: missing)
    assert choice.name == name
    assert why in choice.why


def test_asking_for_a_transport_that_is_not_installed_says_how_to_install_it():
    with pytest.raises(TransportMissing, match="pip install pygrpc-native"):
        choose_transport("native", LOOPBACK, is_pooled=False, why_no_native=lambda: "is not installed")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('libc.musl-x86_64.so.1: no such file')", "cannot be imported (ImportError: libc.musl"),
        ("import a_module_that_is_missing", "cannot be imported (No module named 'a_module_that_is_missing'"),
        ("", ""),
    ],
)
def test_a_broken_install_is_found_out_before_anybody_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    (tmp_path / "pygrpc_native.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "pygrpc_native", None)  # so that the one there is comes back afterwards
    monkeypatch.delitem(sys.modules, "pygrpc_native")
    found = why_no_native()
    assert found.startswith(said)
    assert bool(found) is bool(said)


def test_what_is_not_installed_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygrpc_native", None)
    assert why_no_native() == "is not installed"
