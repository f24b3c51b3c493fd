"""In CI nothing is skipped for want of a tool: a test that cannot run there is a test that nobody runs.

What a machine or its kernel cannot give is the one good reason: a GPU, Landlock, the right to mount. Such a skip says
so in its words.

Servers that tests start are on this machine: a proxy that the environment names is not asked for them.

How long an example of hypothesis takes says how busy the machine is, and fails no test.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings

for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), "127.0.0.1", "localhost", "::1")))

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

OF_THE_MACHINE = ("CUDA", "this kernel", "this machine", "this C library", "mounting")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(words in reason for words in OF_THE_MACHINE):
            report.outcome = "failed"
            report.longrepr = f"skipped in CI, where every tool must be there: {reason}"
    return report


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop of a test: asyncio's own, or a pod's for what is marked so."""
    if item.get_closest_marker("uvloop"):
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
