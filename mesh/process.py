"""The life of the process that is a pod: started, told to stop, drained, stopped, ended.

SIGTERM and SIGINT drain it first; a second one skips that. Whatever happens on the way, what was started is stopped,
and the exit is bounded: threads that nobody can stop are left behind.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from typing import Any

import uvloop

from mesh.node import Node
from mesh.node_store import open_store
from mesh.runtimes.connecting import connect_runtimes
from mesh.settings import Settings
from runtime_adapters.malloc import tune_allocator

log = logging.getLogger("hexcomb.node")

_LAST_THREADS_S = 3.0
"""After the end: how long a thread that nobody can stop, in a model's run or a preparation, may hold up the exit."""


async def run_until_stopped(settings: Settings) -> None:
    """Start a pod, serve until SIGTERM or SIGINT (a second one skips the draining), stop it. Raises as `live` does."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    store = await open_store(settings)
    try:
        beside = await connect_runtimes(settings)
    except BaseException:
        await store.close()
        raise
    node = Node(settings, store, beside=beside)
    loop = asyncio.get_running_loop()
    hurry = asyncio.Event()

    def asked_to_stop() -> None:
        (hurry if node.stop_wanted.is_set() else node.stop_wanted).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop)
    await live(node, hurry)


async def live(node: Node, hurry: asyncio.Event) -> None:
    """A pod's life from its start until it has stopped; `hurry` ends its draining. Raises what `Node.start` raises."""
    starting = asyncio.ensure_future(node.start())
    stopping = asyncio.ensure_future(node.stop_wanted.wait())
    draining = hurrying = None
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
        else:
            await _end(starting)  # it waits to be fit, or for the store
        await stopping
        draining, hurrying = asyncio.ensure_future(node.drain()), asyncio.ensure_future(hurry.wait())
        await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        if draining.done():
            await draining
    finally:
        # Nothing may go on starting, or draining, what is being stopped.
        await _end(starting, stopping, draining, hurrying)
        await node.stop()


async def _end(*tasks: asyncio.Task[Any] | None) -> None:
    begun = [task for task in tasks if task is not None]
    for task in begun:
        task.cancel()
    await asyncio.gather(*begun, return_exceptions=True)


def serve(settings: Settings) -> int:
    """What `hexcomb serve` does; returns the exit code."""
    tune_allocator()
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )

    async def pod() -> None:
        await run_until_stopped(settings)
        _exit_within(_LAST_THREADS_S)

    uvloop.run(pod())
    return 0


def _exit_within(limit_s: float) -> None:
    """The pod has stopped. Python waits at its end for threads of pools, whatever they do; not for ever here."""

    def leave() -> None:
        time.sleep(limit_s)
        log.warning("threads still ran %g s after the stop and are ended", limit_s)
        logging.shutdown()
        os._exit(0)

    threading.Thread(target=leave, name="hexcomb-exit", daemon=True).start()
