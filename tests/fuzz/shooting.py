"""Calls at random against a real pod, and what became of the pod.

    python -m tests.fuzz.shooting --cases 100000 --seed 7 --transport native

Many calls are in flight at once, in batches; after each batch what the calls made is put back: the good models are
there, models and aliases that a call made are not, so that the next batch finds the same pod, and so that what the pod
still holds in the end is a leak. A case fails if it is answered INTERNAL or UNKNOWN (a defect), by bytes that are no
message of the method, not at all, or by a broken line (a crash).

Memory is read when all is put back. Its level after the first `WARM_SHARE` of the cases is where it is counted from:
before that, pools of threads, arenas and caches with a limit fill up.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil

from mesh.client import Client
from tests.e2e.conftest import ModelFiles, Pod, PodStarter
from tests.fuzz.messages_at_random import Shot, Shots

BATCH = 1000
IN_FLIGHT = 64
CALL_TIMEOUT_S = 60.0
STREAM_TIMEOUT_S = 0.3
"""Some streams have no end of their own."""
WARM_SHARE = 0.3
DEFECTS = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS"})
DEFECT_LOGGED = re.compile("incident| ERROR ")
OF_GRPCIO = "ExecuteBatchError raised in core"
"""What grpcio logs when a client leaves before its refusal was sent."""
FAILURES_SHOWN = 20


@dataclass
class Outcome:
    """Of all cases."""

    cases: int = 0
    seconds: float = 0.0
    codes: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)
    """After each batch."""

    @property
    def warm_rss_bytes(self) -> int:
        """The level from which growth is counted."""
        return max(self.rss_bytes[: max(1, int(len(self.rss_bytes) * WARM_SHARE))])

    @property
    def growth_bytes(self) -> int:
        """Of the pod's memory, over that level."""
        return self.rss_bytes[-1] - self.warm_rss_bytes

    def report(self) -> str:
        """For people."""
        codes = ", ".join(f"{code} {count:,}" for code, count in self.codes.most_common())
        tenths = [self.rss_bytes[round(tenth / 10 * (len(self.rss_bytes) - 1))] for tenth in range(11)]
        rss = " ".join(f"{each / 2**20:.1f}" for each in tenths)
        lines = [
            f"{self.cases:,} cases in {self.seconds:.0f} s over {len(self.methods)} methods: {codes}",
            f"memory at the beginning, and after each tenth: {rss} MiB",
            f"{len(self.failures)} failures" + "".join(f"\n  {each}" for each in self.failures[:FAILURES_SHOWN]),
        ]
        return "\n".join(lines)


class Range:
    """A pod to shoot at: what belongs on it, and what it says."""

    def __init__(self, pod: Pod, files: ModelFiles) -> None:
        self.pod = pod
        self._good = {"scale": files.scale().uri, "words": files.words().uri}
        self.uris = (*self._good.values(), files.scale(3.0).uri, files.xgboost().uri, f"{files.scale().uri}.absent")
        self._bad_uri = f"{files.scale().uri}.absent"

    def put_back(self) -> None:
        """The models and aliases that belong here, and no others."""
        with self.pod.client(timeout_s=60.0) as client:
            for alias in list(client.list_aliases()):
                client.delete_alias(alias.id, alias.owner)
            for model in list(client.list_models()):
                if model.id not in self._good or model.spec.uri != self._good[model.id] or _is_odd(model.spec):
                    client.unregister(model.id)
            self._register(client)
        self.pod.wait_settled()

    def _register(self, client: Client) -> None:
        for name, uri in self._good.items():
            client.register(name, uri=uri)
            client.release(name)
        client.register("bad", uri=self._bad_uri, format="onnx")
        client.set_alias("canary", "scale")

    def rss_bytes(self) -> int:
        """Of the pod, its children left out: it has none."""
        return int(psutil.Process(self.pod.process.pid).memory_info().rss)


def _is_odd(spec: Any) -> bool:
    return bool(spec.pinned or spec.labels or spec.parameters or spec.format or spec.storage_key or spec.checksum)


async def shoot(range_: Range, shots: Shots, cases: int) -> Outcome:
    """All cases, in batches."""
    outcome = Outcome()
    began_s = time.monotonic()
    while outcome.cases < cases:
        batch = [shots.next() for _ in range(min(BATCH, cases - outcome.cases))]
        await _batch(range_.pod.target, batch, outcome)
        if range_.pod.process.poll() is not None:
            outcome.failures.append(f"the pod ended with code {range_.pod.process.returncode}")
            break
        await asyncio.to_thread(range_.put_back)
        outcome.rss_bytes.append(range_.rss_bytes())
    outcome.seconds = time.monotonic() - began_s
    lines = range_.pod.log_text().splitlines()
    outcome.failures += [line for line in lines if DEFECT_LOGGED.search(line) and OF_GRPCIO not in line]
    return outcome


async def _batch(target: str, batch: Sequence[Shot], outcome: Outcome) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        todo = iter(batch)

        async def worker() -> None:
            for shot in todo:
                code, complaint = await _one(channel, shot)
                outcome.cases += 1
                outcome.codes[code] += 1
                outcome.methods[shot.method.path] += 1
                if complaint or code in DEFECTS:
                    what = f"{shot.method.path} {shot.body.hex()} {shot.metadata}"
                    outcome.failures.append(f"{code} {complaint}: {what[:600]}")

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))


async def _one(channel: grpc.aio.Channel, shot: Shot) -> tuple[str, str]:
    """Its status, and what is wrong with the answer, if anything."""
    method = shot.method
    try:
        if method.streams:
            # A stream of one message is the same on the line; a stream of requests fails in grpc.aio itself.
            call = channel.unary_stream(method.path)(shot.body, metadata=shot.metadata, timeout=STREAM_TIMEOUT_S)
            answers = [answer async for answer in call]
        else:
            answers = [
                await channel.unary_unary(method.path)(shot.body, metadata=shot.metadata, timeout=CALL_TIMEOUT_S)
            ]
    except grpc.aio.AioRpcError as error:
        broken = error.code() is grpc.StatusCode.UNAVAILABLE and not error.trailing_metadata() and _is_of_line(error)
        return error.code().name, f"the line broke: {error.details()}" if broken else (error.details() or "")[
            : 300 * (error.code().name in DEFECTS)
        ]
    for answer in answers:
        try:
            method.response.FromString(answer)
        except Exception as error:
            return "OK", f"the answer is no {method.response.__name__}: {error}"
    return "OK", ""


def _is_of_line(error: grpc.aio.AioRpcError) -> bool:
    details = error.details() or ""
    return any(word in details for word in ("failed to connect", "Socket closed", "Connection reset", "GOAWAY"))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--transport", default="native", choices=("native", "grpcio"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        files = ModelFiles(Path(directory))
        starter = PodStarter(Path(directory))
        try:
            range_ = Range(starter(transport=asked.transport, capacity="64MiB"), files)
            range_.put_back()
            outcome = asyncio.run(shoot(range_, Shots(asked.seed, range_.uris), asked.cases))
        finally:
            starter.close()
    sys.stdout.write(f"seed {asked.seed}, {asked.transport}: {outcome.report()}\n")
    if outcome.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
