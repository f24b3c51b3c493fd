"""Quantities as the API server keeps them."""

from __future__ import annotations

import pytest

from controller.quantities import bytes_of, canonical


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("1024Mi", "1Gi"),
        ("1536Mi", "1536Mi"),
        ("1.5Gi", "1536Mi"),
        ("1000m", "1"),
        ("0.5", "500m"),
        (1, "1"),
        (0.25, "250m"),
        ("2000", "2k"),
        ("100m", "100m"),
        ("0", "0"),
        ("2Gi", "2Gi"),
        ("512Ki", "512Ki"),
        ("1000M", "1G"),
    ],
)
def test_the_largest_unit_that_leaves_a_whole_number_is_kept(said: object, kept: str) -> None:
    assert canonical(said) == kept


@pytest.mark.parametrize("odd", ["lots", "-1", None, True, [], "1e3"])
def test_what_is_no_plain_quantity_stays_as_it_is(odd: object) -> None:
    assert canonical(odd) is odd


@pytest.mark.parametrize(
    ("said", "size"), [("1Ki", 1024), ("1.5k", 1500), ("1e3", 1000), (7, 7), ("100m", 1), ("-1", None), (True, None)]
)
def test_bytes_are_whole_and_rounded_up(said: object, size: int | None) -> None:
    assert bytes_of(said) == size
