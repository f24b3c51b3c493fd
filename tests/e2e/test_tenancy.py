"""Two tenants on one pod: the same names, different models, and no way from one to the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mesh.client import AlreadyExists, Client, InvalidRequest, NotFound

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod) -> Pod:
    return start_module_pod(tenant_ports="blue=0,green=0")


@pytest.fixture
def clients(pod: Pod) -> Iterator[tuple[Client, Client, Client]]:
    """Of the tenants default, blue and green."""
    with pod.client() as default, pod.client(tenant="blue") as blue, pod.client(tenant="green") as green:
        yield default, blue, green
        for client in (default, blue, green):
            for name in ("alias", "shared-name"):
                client.delete_alias(name)
            client.unregister_many([model.id for model in client.list_models()])
    pod.wait_settled()


def test_one_name_is_another_model_for_each_tenant(clients: tuple[Client, Client, Client], files: ModelFiles) -> None:
    kinds = [files.scale(factor) for factor in (2.0, 3.0, 4.0)]
    for client, kind in zip(clients, kinds, strict=True):
        assert client.register("price", uri=kind.uri).generation == 1
    for client, kind in zip(clients, kinds, strict=True):
        answer = client.infer("price", kind.inputs)
        assert answer.model_name == "price"
        np.testing.assert_array_equal(answer.outputs["y"], kind.expected["y"])
        assert [(model.id, model.spec.uri) for model in client.list_models()] == [("price", kind.uri)]


def test_a_tenant_cannot_see_call_change_or_alias_what_is_anothers(
    clients: tuple[Client, Client, Client], files: ModelFiles
) -> None:
    _, blue, green = clients
    example = files.scale()
    blue.register("secret", uri=example.uri)
    blue.set_alias("alias", "secret")
    for attempt in (
        lambda: green.infer("secret", example.inputs),
        lambda: green.infer("alias", example.inputs),
        lambda: green.describe("secret"),
        lambda: green.model_metadata("secret"),
        lambda: green.ensure_loaded("secret"),
        lambda: green.set_pinned("secret", True),
        lambda: green.set_alias("mine", "secret"),
    ):
        with pytest.raises(NotFound) as refused:
            attempt()
        assert "blue" not in refused.value.message
        assert example.uri not in refused.value.message
    assert not green.model_ready("secret")
    assert green.unregister("secret") is False
    assert list(green.list_models()) == []
    np.testing.assert_array_equal(blue.infer("alias", example.inputs).outputs["y"], example.expected["y"])


def test_a_tenant_that_is_no_name_is_refused(pod: Pod, files: ModelFiles) -> None:
    with (
        pod.client(tenant="x" * 300) as client,
        pytest.raises(InvalidRequest, match=r"tenant.*300 characters"),
    ):
        client.register("m", uri=files.scale().uri)
    with pod.client(tenant="") as client:  # says nothing, so it is the default one
        assert list(client.list_models()) == []


def test_no_tenants_name_is_a_path_to_another(pod: Pod, files: ModelFiles) -> None:
    names = ["a", "a/b", "a%2Fb", "..", "A", "*"]
    for factor, tenant in enumerate(names, 2):
        with pod.client(tenant=tenant) as client:
            client.register("b/c", uri=files.scale(factor).uri)
    for factor, tenant in enumerate(names, 2):
        with pod.client(tenant=tenant) as client:
            example = files.scale(factor)
            assert [model.id for model in client.list_models()] == ["b/c"]
            np.testing.assert_array_equal(client.infer("b/c", example.inputs).outputs["y"], example.expected["y"])
            client.unregister("b/c")


def _addresses(pod: Pod) -> list[str]:
    return [address.removeprefix("grpc://") for address in pod.status().addresses if address.startswith("grpc://")]


def test_a_tenants_own_address_speaks_for_that_tenant_unless_a_header_says_otherwise(
    pod: Pod, clients: tuple[Client, Client, Client], files: ModelFiles
) -> None:
    default, blue, green = clients
    two, three = files.scale(2), files.scale(3)
    blue.register("m", uri=two.uri)
    green.register("m", uri=three.uri)
    common, blue_address, green_address = _addresses(pod)
    assert common == pod.target
    for address, kind in ((blue_address, two), (green_address, three)):
        with Client(address) as client:
            np.testing.assert_array_equal(client.infer("m", two.inputs).outputs["y"], kind.expected["y"])
    with Client(blue_address, tenant="green") as client:
        np.testing.assert_array_equal(client.infer("m", two.inputs).outputs["y"], three.expected["y"])
    with pytest.raises(NotFound):
        default.infer("m", two.inputs)


def test_models_and_aliases_share_the_names_of_their_tenant(
    clients: tuple[Client, Client, Client], files: ModelFiles
) -> None:
    default, blue, _ = clients
    uri = files.scale().uri
    for client in (default, blue):
        client.register("model", uri=uri)
    default.set_alias("shared-name", "model")
    with pytest.raises(AlreadyExists, match=r"'shared-name'.*alias"):
        default.register("shared-name", uri=uri)
    default.register("other", uri=uri)
    with pytest.raises(AlreadyExists, match=r"'other'.*model"):
        default.set_alias("other", "model")
    with pytest.raises(InvalidRequest, match="itself"):
        default.set_alias("model", "model")
    assert blue.register("shared-name", uri=uri).generation == 1


def test_unicode_slashes_and_percents_in_an_id_are_just_its_name(
    clients: tuple[Client, Client, Client], files: ModelFiles
) -> None:
    default, blue, _ = clients
    example = files.scale()
    names = ["team/model", "team%2Fmodel", "größe", "a b", "..", "models/default/x", "x" * 200]
    for name in names:
        default.register(name, uri=example.uri)
        assert default.infer(name, example.inputs).model_name == name
    assert sorted(model.id for model in default.list_models()) == sorted(names)
    assert list(blue.list_models()) == []
    assert default.unregister("team/model")
    assert sorted(model.id for model in default.list_models()) == sorted(set(names) - {"team/model"})
