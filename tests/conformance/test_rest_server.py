"""REST: health, server metadata, model metadata."""

from __future__ import annotations

import pytest

from tests.conformance.asking import HttpServer
from tests.conformance.cases import MUST, SHOULD, case, not_applicable
from tests.conformance.conftest import of_datatypes
from tests.conformance.json_bodies import check_error
from tests.conformance.subjects import Subject

PATHS = "inference_rest.md, HTTP/REST"
METADATA = "inference_rest.md, Model Metadata"
NOBODY = "no-such-model-anywhere"


@case("rest.live", MUST, f"{PATHS}: Server Live")
def test_live(http_server: HttpServer) -> None:
    """GET /v2/health/live is 200 where the server lives."""
    assert http_server.ask("GET", "/v2/health/live").code == 200


@case("rest.live.body", SHOULD, "inference_rest.md, Server Live Response JSON Object")
def test_live_body(http_server: HttpServer) -> None:
    """Its body is {"live": true}."""
    assert http_server.ask("GET", "/v2/health/live").answer == {"live": True}


@case("rest.ready", MUST, f"{PATHS}: Server Ready")
def test_ready(http_server: HttpServer) -> None:
    """GET /v2/health/ready is 200 where the server is ready."""
    assert http_server.ask("GET", "/v2/health/ready").code == 200


@case("rest.metadata.server", MUST, "inference_rest.md, Server Metadata Response JSON Object")
def test_server_metadata(http_server: HttpServer) -> None:
    """GET /v2 has the server's name, version and extensions, as texts."""
    answer = http_server.ask("GET", "/v2").answer
    for field in ("name", "version"):
        assert isinstance(answer.get(field), str), f"{field} is {answer.get(field)!r}"
    extensions = answer.get("extensions")
    assert isinstance(extensions, list), f"extensions is {extensions!r}"
    assert all(isinstance(each, str) for each in extensions), f"extensions is {extensions!r}"


@case("rest.content-type", SHOULD, PATHS)
@pytest.mark.parametrize("path", ["/v2", "/v2/models/{name}"], ids=["server", "model"])
def test_content_type(http_server: HttpServer, subject: Subject, path: str) -> None:
    """JSON is sent as application/json."""
    heard = http_server.ask("GET", path.format(name=subject.name))
    kind = heard.headers.get("content-type", "")
    assert kind.split(";")[0] == "application/json", f"content-type is {kind!r}"


@case("rest.ready.model", MUST, f"{PATHS}: Model Ready")
def test_model_ready(http_server: HttpServer, subject: Subject) -> None:
    """GET /v2/models/M/ready is 200 for a model that answers."""
    assert http_server.ask("GET", f"/v2/models/{subject.name}/ready").code == 200


@case("rest.ready.model.body", SHOULD, "inference_rest.md, Model Ready Response JSON Object")
def test_model_ready_body(http_server: HttpServer, subject: Subject) -> None:
    """Its body has the model's name, and that it is ready."""
    answer = http_server.ask("GET", f"/v2/models/{subject.name}/ready").answer
    found = {field: answer.get(field) for field in ("name", "ready")}
    assert found == {"name": subject.name, "ready": True}, f"the body is {answer}"


@case("rest.ready.model.unknown", MUST, f"{PATHS}: Model Ready")
def test_unknown_model_ready(http_server: HttpServer) -> None:
    """It is an error for a model that is not there."""
    heard = http_server.ask("GET", f"/v2/models/{NOBODY}/ready")
    assert 400 <= heard.code < 600, f"HTTP {heard.code}"


@case("rest.metadata.model", MUST, f"{METADATA} Response JSON Object")
@of_datatypes()
def test_model_metadata(http_server: HttpServer, identity: Subject) -> None:
    """Name, platform, inputs and outputs are the model's: names, datatypes of the table, shapes (-1: of any size)."""
    answer = http_server.ask("GET", f"/v2/models/{identity.name}").answer
    assert answer.get("name") == identity.name, f"its name is {answer.get('name')!r}"
    assert isinstance(answer.get("platform"), str), f"platform is {answer.get('platform')!r}"
    for which, declared in (("inputs", identity.inputs), ("outputs", identity.outputs)):
        expected = [{"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each in declared]
        found = [{field: each.get(field) for field in ("name", "datatype", "shape")} for each in answer[which] or ()]
        assert found == expected, f"{which} are {found}, not {expected}"


@case("rest.metadata.model.version", MUST, METADATA)
def test_model_version(http_server: HttpServer, subject: Subject) -> None:
    """Versions that the metadata name have metadata, and are ready."""
    versions = http_server.ask("GET", f"/v2/models/{subject.name}").answer.get("versions")
    if not versions:
        not_applicable("the metadata name no versions")
    assert all(isinstance(version, str) for version in versions), f"versions are {versions}"
    for version in versions:
        path = f"/v2/models/{subject.name}/versions/{version}"
        assert http_server.ask("GET", path).answer["name"] == subject.name
        assert http_server.ask("GET", f"{path}/ready").code == 200


UNKNOWN = [
    pytest.param(f"/v2/models/{NOBODY}", id="model"),
    pytest.param("/v2/models/{name}/versions/77777", id="version"),
]


@case("rest.metadata.model.unknown", MUST, f"{METADATA} Response JSON Error Object")
@pytest.mark.parametrize("path", UNKNOWN)
def test_unknown(http_server: HttpServer, subject: Subject, path: str) -> None:
    """What is not there is an HTTP error, with {"error": text}."""
    check_error(http_server.ask("GET", path.format(name=subject.name)))


@case("rest.metadata.model.unknown.code", SHOULD, "HTTP's status codes")
@pytest.mark.parametrize("path", UNKNOWN)
def test_unknown_is_a_client_error(http_server: HttpServer, subject: Subject, path: str) -> None:
    """The code is 404, or 400, which is what the text calls typical."""
    code = http_server.ask("GET", path.format(name=subject.name)).code
    assert code in (400, 404), f"HTTP {code}"


@case("rest.no-such-path", SHOULD, "HTTP's status codes")
def test_no_such_path(http_server: HttpServer) -> None:
    """A path that is not there is 404 (400 where the server takes it for a request that is wrong)."""
    code = http_server.ask("GET", "/v2/no/such/path").code
    assert code in (400, 404), f"HTTP {code}"


@case("rest.no-such-method", SHOULD, "HTTP's status codes")
def test_no_such_method(http_server: HttpServer, subject: Subject) -> None:
    """GET where POST is meant is 405 (or 400, or 404)."""
    code = http_server.ask("GET", f"/v2/models/{subject.name}/infer").code
    assert code in (400, 404, 405), f"HTTP {code}"
