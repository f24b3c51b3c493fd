"""Where etcd is: what addresses mean, and that a wrong one is named without its password."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from placement.errors import InvalidAddress
from placement.store.etcd_options import EtcdOptions, Pem


def test_a_url_names_members_and_prefix() -> None:
    options = EtcdOptions.from_url("etcd://a:2379,b:12379,[::1]:2379/pools/one/")
    assert options.endpoints == ("a:2379", "b:12379", "[::1]:2379")
    assert options.prefix == "pools/one"
    assert not options.tls
    assert options.user == ""


def test_the_port_may_be_left_out() -> None:
    assert EtcdOptions.from_url("etcd://a,b/p").endpoints == ("a:2379", "b:2379")


def test_user_and_password_are_percent_decoded() -> None:
    options = EtcdOptions.from_url("etcd://us%40er:p%3A%2F%3F%23%40ss@a:1/p")
    assert (options.user, options.password) == ("us@er", "p:/?#@ss")


def test_tls_and_its_files_stand_in_the_url() -> None:
    options = EtcdOptions.from_url(
        "etcds://a:1/p?ca=/t/ca.crt&cert=/t/c.crt&key=/t/c.key&server_name=etcd&call_timeout_s=2.5"
    )
    assert options.tls
    assert options.ca == Pem(Path("/t/ca.crt"))
    assert options.certificate == Pem(Path("/t/c.crt"))
    assert options.key == Pem(Path("/t/c.key"))
    assert options.server_name == "etcd"
    assert options.call_timeout_s == 2.5


def test_what_is_shown_leads_back_to_the_address_but_not_to_the_password() -> None:
    options = EtcdOptions.from_url("etcds://me:hush@a:1,b:2/p")
    assert options.shown == "etcds://me@a:1,b:2/p"
    assert "hush" not in repr(options)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://a:1/p", "not an etcd address"),
        ("a:2379/p", "not an etcd address"),
        ("etcd://a:1", "no prefix"),
        ("etcd://a:1/", "no prefix"),
        ("etcd:///p", "names no host"),
        ("etcd://,/p", "names no host"),
        ("etcd://a:x/p", "not HOST:PORT"),
        ("etcd://a:70000/p", "not HOST:PORT"),
        ("etcd://::1:2379/p", "not HOST:PORT"),
        ("etcd://[::1/p", "host cannot be read"),
        ("etcd://a:1/p q", "prefix 'p q' is not allowed"),
        ("etcd://a:1//p//q", "prefix"),
        ("etcd://:pw@a:1/p", "password but no user"),
        ("etcd://a:1/p?ca=x", "no TLS"),
        ("etcds://a:1/p?cert=x", "needs both cert and key"),
        ("etcds://a:1/p?color=red", "'color' is not an option"),
        ("etcd://a:1/p?call_timeout_s=soon", "give seconds"),
        ("etcd://a:1/p?call_timeout_s=0", "give seconds above 0"),
        ("etcd://a:1/p#x", "write %2F"),
    ],
)
def test_a_wrong_url_says_what_is_wrong(url: str, said: str) -> None:
    with pytest.raises(InvalidAddress, match=said.replace("?", r"\?")):
        EtcdOptions.from_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hush@a:1/p",
        "etcd://me:hush@a:x/p",
        "etcd://me:hu/sh@a:1/p",
        "etcd://me:hush?x@a:1/p",
        "etcd://me:hush#x@a:1/p",
        "etcd://me:hush@a:1",
        "etcd://me:hush@[a/p",
        "etcd://me:hush@a\u2100b:1/p",
        "etcd://me:hush@a:1/p?x=1",
    ],
)
def test_no_error_shows_a_password(url: str) -> None:
    with pytest.raises(InvalidAddress) as caught:
        EtcdOptions.from_url(url)
    assert "hu" not in str(caught.value).replace("hostname", "")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


MODELMESH = {
    "endpoints": "https://etcd-0.etcd:2379,https://etcd-1.etcd:2379",
    "userid": "mm",
    "password": "hush",
    "root_prefix": "/modelmesh-serving",
    "certificate_file": "ca.crt",
    "client_key_file": "/abs/client.key",
    "client_certificate_file": "client.crt",
    "override_authority": "etcd.internal",
}


def test_modelmeshs_connection_is_read_as_it_is(tmp_path: Path) -> None:
    options = EtcdOptions.from_connection_json(json.dumps(MODELMESH), tmp_path)
    assert options == EtcdOptions(
        ("etcd-0.etcd:2379", "etcd-1.etcd:2379"),
        "modelmesh-serving",
        user="mm",
        password="hush",
        tls=True,
        ca=Pem(tmp_path / "ca.crt"),
        certificate=Pem(tmp_path / "client.crt"),
        key=Pem(Path("/abs/client.key")),
        server_name="etcd.internal",
    )


def test_certificates_may_stand_inside_the_connection(tmp_path: Path) -> None:
    text = {
        "endpoints": "https://a:1",
        "root_prefix": "p",
        "certificate": "CA",
        "client_key": "K",
        "client_certificate": "C",
    }
    options = EtcdOptions.from_connection_json(json.dumps(text), tmp_path)
    assert (options.ca, options.key, options.certificate) == (Pem(text="CA"), Pem(text="K"), Pem(text="C"))


def test_a_connection_without_a_prefix_takes_the_one_given(tmp_path: Path) -> None:
    text = json.dumps({"endpoints": "http://a:1"})
    assert EtcdOptions.from_connection_json(text, tmp_path, default_prefix="pool").prefix == "pool"
    with pytest.raises(InvalidAddress, match="prefix"):
        EtcdOptions.from_connection_json(text, tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON: see line 1"),
        ("[]", "not a JSON object"),
        ('{"endpoints": ["http://a:1"]}', "endpoints must be text"),
        ('{"root_prefix": "p"}', "names no host"),
        ('{"endpoints": "http://a:1,https://b:1", "root_prefix": "p"}', "http:// for all, or https://"),
        ('{"endpoints": "ftp://a:1", "root_prefix": "p"}', "ftp"),
        ('{"endpoints": "http://a:1", "root_prefix": "p", "certificate_file": "ca.crt"}', "no TLS"),
    ],
)
def test_a_wrong_connection_says_what_is_wrong(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidAddress, match=said):
        EtcdOptions.from_connection_json(text, tmp_path)
