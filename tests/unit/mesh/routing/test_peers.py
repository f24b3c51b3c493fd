"""The names of a pod, page by page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from mesh.routing import peers
from mesh.routing.peers import names_page
from placement.errors import InvalidName
from placement.records import AliasRecord, ModelRecord, ModelSpec
from placement.view import NameEvent, RegistryView, TenantView, advance


def model(tenant: str, model_id: str) -> NameEvent:
    record = ModelRecord(tenant, model_id, ModelSpec("file:///m"), 1, 0.0, 0.0)
    return NameEvent(False, tenant, model_id, 1, record)


def alias(tenant: str, alias_id: str) -> NameEvent:
    return NameEvent(True, tenant, alias_id, 1, AliasRecord(tenant, alias_id, "m", "m"))


def view(*events: NameEvent) -> RegistryView:
    return advance(RegistryView(), events, 1)[0]


def pages(of: Iterable[RegistryView]) -> Iterator[list[str]]:
    """The keys on each page, the pages being asked of one picture after the other."""
    token = ""
    for picture in of:
        page = names_page(picture, token)
        yield [record.key for record in page.records]
        token = page.next_page_token
        if not token:
            return


def test_all_names_come_once_in_one_order_whatever_a_page_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        *(model("b", f"m {number}") for number in range(5)),
        *(alias("b", f"a/{number}") for number in range(4)),
        alias("a", "z"),
        model("c", "a/3"),
    ]
    of = view(*names)
    whole = list(pages([of]))
    assert len(whole) == 1
    assert whole[0][:2] == ["aliases/a/z", "models/b/m%200"]
    for page_bytes in (0, 150, 400):
        monkeypatch.setattr(peers, "PAGE_BYTES_MAX", page_bytes)
        some = list(pages([of] * 20))
        assert len(some) > 1
        assert [key for page in some for key in page] == whole[0]


def test_names_that_come_and_go_between_pages_hide_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PAGE_BYTES_MAX", 0)
    first = view(model("t", "b"), model("t", "c"), model("t", "d"))
    gone, _ = advance(first, [NameEvent(False, "t", "b", 2, None)], 2)
    more, _ = advance(gone, [model("t", "a")], 3)
    assert list(pages([first, gone, more, more])) == [["models/t/b"], ["models/t/c"], ["models/t/d"]]


def test_a_page_costs_what_is_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []

    class Counted(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            looked_at.append(key)
            return super().__getitem__(key)

    ids = [f"m{number:04}" for number in range(2000)]
    models = Counted({each: model("t", each).entry for each in ids})
    of = RegistryView(1, {"t": TenantView(models)})
    monkeypatch.setattr(peers, "PAGE_BYTES_MAX", 500)
    page = names_page(of, "models/t/m1000")
    assert page.records[0].key == "models/t/m1001"
    assert len(looked_at) == len(page.records) + 1


def test_a_token_of_another_kind_is_refused() -> None:
    with pytest.raises(InvalidName):
        names_page(view(model("t", "m")), "17")
