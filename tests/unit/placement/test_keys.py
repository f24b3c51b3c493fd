"""Names that may be, names that may not, and the keys they make."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement import keys
from placement.errors import InvalidName
from placement.store.base import StoreLimits, check_key

GOOD = ["iris", "a/b/c", "100%", "%2F", "modèle", "模型", "a b", "x" * 512, ".", "..", "👩\u200d🔬", "\U0001f600" * 512]
BAD = [
    ("", "is empty"),
    ("x" * 513, "513 characters"),
    ("a\nb", "position 1"),
    ("a\x00", "position 1"),
    ("a\x7fb", "position 1"),
    ("\ud800", "position 0"),
    ("a\u2028b", "position 1"),
    ("evil\u202eexe", "position 4"),
    (" a", "space"),
    ("a ", "space"),
    ("a\u00a0", "space"),
]


@pytest.mark.parametrize("name", GOOD)
def test_a_name_that_may_be_makes_a_key_and_comes_back_from_it(name: str) -> None:
    keys.check_id(name)
    key = keys.model_key("tenant/1", name)
    check_key(key, StoreLimits())
    assert key.count("/") == 2
    assert keys.split_name_key(key) == ("tenant/1", name)


@pytest.mark.parametrize(("name", "message"), BAD)
def test_a_name_that_may_not_be_is_refused_with_its_place(name: str, message: str) -> None:
    with pytest.raises(InvalidName, match=message) as caught:
        keys.check_id(name)
    assert str(caught.value).isprintable()


def test_a_tenant_is_checked_like_an_id_with_its_own_length() -> None:
    keys.check_tenant("t" * 128)
    with pytest.raises(InvalidName, match="tenant has 129 characters"):
        keys.check_tenant("t" * 129)


def test_the_longest_names_still_fit_a_key() -> None:
    name = "\U0001f600"
    check_key(keys.copy_key(name * 128, name * 512, "p" * 253), StoreLimits())


@given(st.tuples(st.text(min_size=1), st.text(min_size=1)), st.tuples(st.text(min_size=1), st.text(min_size=1)))
def test_different_names_never_share_a_key_and_no_prefix_reaches_a_neighbour(
    one: tuple[str, str], two: tuple[str, str]
) -> None:
    try:
        for name in (*one, *two):
            name.encode()
    except UnicodeEncodeError:
        return
    assert (keys.model_key(*one) == keys.model_key(*two)) == (one == two)
    inside = keys.copy_key(*two, "pod").startswith(keys.copies_prefix(*one))
    assert inside == (one == two)
