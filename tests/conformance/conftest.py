"""Which server is tried, with which models; and the report of it.

pytest tests/conformance --target HOST:PORT --http HOST:PORT [--models FILE | --model NAME] [--case ID] [--report FILE]
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.asking import GrpcServer, HttpServer
from tests.conformance.cases import id_of, not_applicable
from tests.conformance.report import Report, Result
from tests.conformance.subjects import CONVENTION, Subject, Subjects, Tensor
from tests.conformance.tensors import OF_THE_TABLE

REPORT = pytest.StashKey[Report]()
_MESSAGE_CHARACTERS = 240


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the suite."""
    group = parser.getgroup("conformance", "Open Inference Protocol")
    group.addoption("--target", metavar="HOST:PORT", help="the server's gRPC address")
    group.addoption("--http", metavar="HOST:PORT", help="the server's HTTP address")
    group.addoption("--models", metavar="FILE", type=Path, default=CONVENTION, help="what its models are called")
    group.addoption(
        "--model", metavar="NAME", help="one model that it has, in place of the suite's; no values compared"
    )
    group.addoption("--case", metavar="ID", help="only cases whose id begins so")
    group.addoption("--report", metavar="FILE", type=Path, help="write the results there, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """The mark, and where results are collected."""
    config.addinivalue_line("markers", "case(id, severity, section): a case of the conformance suite")
    config.stash[REPORT] = Report()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only what was asked for."""
    wanted = config.getoption("--case", None)
    if wanted:
        left = [item for item in items if not id_of(item).startswith(wanted)]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if id_of(item).startswith(wanted)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """What became of a case."""
    report = yield
    mark = item.get_closest_marker("case")
    if mark is not None and (report.when == "call" or (report.outcome != "passed" and report.when == "setup")):
        says = " ".join((getattr(item, "function", None).__doc__ or "").split())
        item.config.stash[REPORT].results.append(
            Result(id_of(item), mark.kwargs["severity"].value, mark.kwargs["section"], says, report.outcome, _why(call))
        )
    return report


def _why(call: pytest.CallInfo[None]) -> str:
    if call.excinfo is None:
        return ""
    message = str(getattr(call.excinfo.value, "msg", None) or call.excinfo.value) or call.excinfo.typename
    first = re.split(r"\nassert |\n  ", message)[0].strip()
    return " ".join(first.split())[:_MESSAGE_CHARACTERS]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Counts and deviations; and the file that was asked for."""
    report = config.stash[REPORT]
    if not report.results:
        return
    terminalreporter.section("conformance")
    terminalreporter.write_line(report.as_text())
    path = config.getoption("--report", None)
    if path:
        path.write_text(report.as_json())


@pytest.fixture(scope="session")
def grpc_server(request: pytest.FixtureRequest) -> GrpcServer:
    """The gRPC side."""
    target = request.config.getoption("--target", None)
    if not target:
        not_applicable("no --target: this server's gRPC side is not tried")
    return GrpcServer(target)


@pytest.fixture(scope="session")
def http_server(request: pytest.FixtureRequest) -> Iterator[HttpServer]:
    """The HTTP side."""
    address = request.config.getoption("--http", None)
    if not address:
        not_applicable("no --http: this server's HTTP side is not tried")
    server = HttpServer(address)
    yield server
    server.close()


@pytest.fixture(scope="session")
def subjects(request: pytest.FixtureRequest) -> Subjects:
    """The server's models."""
    name = request.config.getoption("--model", None)
    if not name:
        return Subjects.from_file(request.config.getoption("--models", CONVENTION))
    http: HttpServer = request.getfixturevalue("http_server")
    described = http.ask("GET", f"/v2/models/{name}").answer
    inputs, outputs = (
        tuple(Tensor(each["name"], each["datatype"], tuple(each["shape"])) for each in described[which])
        for which in ("inputs", "outputs")
    )
    return Subjects(dict.fromkeys({tensor.datatype for tensor in inputs}, Subject(name, inputs, outputs, "")), None)


@pytest.fixture
def identity(request: pytest.FixtureRequest, subjects: Subjects) -> Subject:
    """The model of the datatype that is the test's parameter."""
    if request.param not in subjects.identity:
        not_applicable(f"there is no model of {request.param}")
    return subjects.identity[request.param]


@pytest.fixture
def subject(subjects: Subjects) -> Subject:
    """Any model: that of FP32, where there is one."""
    found = subjects.identity.get("FP32") or next(iter(subjects.identity.values()), None)
    return found or not_applicable("there is no identity model")


@pytest.fixture
def text(subjects: Subjects) -> Subject:
    """The model of BYTES."""
    return subjects.identity.get("BYTES") or not_applicable("there is no model of BYTES")


@pytest.fixture
def pair(subjects: Subjects) -> Subject:
    """The model of two inputs and two outputs."""
    return subjects.pair or not_applicable("there is no pair model")


def of_datatypes(*datatypes: str) -> pytest.MarkDecorator:
    """Once for the model of each of these datatypes; of those in the protocol's table, when none is named."""
    return pytest.mark.parametrize("identity", datatypes or OF_THE_TABLE, indirect=True)


@pytest.fixture(scope="session")
def extensions(request: pytest.FixtureRequest) -> frozenset[str]:
    """What the server advertises, over either protocol."""
    found: set[str] = set()
    if request.config.getoption("--target", None):
        from tritonclient.grpc import service_pb2 as pb

        found.update(
            request.getfixturevalue("grpc_server").call("ServerMetadata", pb.ServerMetadataRequest()).extensions
        )
    if request.config.getoption("--http", None):
        found.update(request.getfixturevalue("http_server").ask("GET", "/v2").answer.get("extensions", ()))
    return frozenset(found)
