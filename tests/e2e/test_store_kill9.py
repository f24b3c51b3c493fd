"""A process that registers models is killed at random moments; whatever it was told is stored must be there.

The writer prints an id only after its registration was answered. The kill comes after a random number of such lines,
so it falls into commits, checkpoints, and the gaps between. One data directory lives through all rounds, and updates
and unregistrations are acknowledged writes as well.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from placement.registry import Registry
from placement.store.embedded import EmbeddedStore

ROUNDS = 12
SEED = 20260401

WRITER = """
import asyncio, pathlib, sys
from placement.records import ModelSpec
from placement.registration import Registration
from placement.registry import Registry
from placement.store.embedded import EmbeddedStore

directory, round_number = pathlib.Path(sys.argv[1]), sys.argv[2]

async def one_by_one(registry, lane):
    for i in range(100_000):
        name = f"r{round_number}-{lane}-{i}"
        await registry.register("t", name, ModelSpec(f"file:///{name}"))
        print("+", name, 1, flush=True)
        if i % 5 == 1:
            await registry.register("t", name, ModelSpec("file:///new"), if_generation=1)
            print("+", name, 2, flush=True)
        if i % 5 == 2:
            print("?", name, 0, flush=True)
            await registry.unregister("t", name)
            print("-", name, 0, flush=True)

async def in_bulk(registry):
    for i in range(100_000):
        names = [f"r{round_number}-bulk{i}-{j}" for j in range(200)]
        await registry.register_many("t", [Registration(n, ModelSpec(f"file:///{n}")) for n in names])
        print("".join(f"+ {n} 1\\n" for n in names), end="", flush=True)

async def main():
    store = await EmbeddedStore.open(directory)
    registry = Registry(store)
    await registry.start()
    await asyncio.gather(in_bulk(registry), *(one_by_one(registry, lane) for lane in range(8)))

asyncio.run(main())
"""


def kill_after(directory: Path, round_number: int, lines: int) -> list[str]:
    """What the writer had acknowledged when it was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), str(round_number)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        head = [writer.stdout.readline() for _ in range(lines)]
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read()
    assert writer.returncode == -signal.SIGKILL, "the writer ended by itself"
    text = (b"".join(head) + rest).decode()
    return text[: text.rfind("\n")].splitlines()


async def test_no_acknowledged_write_is_lost_whenever_the_process_is_killed(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    there: dict[str, int] = {}
    leaving: set[str] = set()
    gone: set[str] = set()
    for round_number in range(ROUNDS):
        for line in kill_after(tmp_path, round_number, chance.choice([1, chance.randrange(2, 400), 1500])):
            sign, name, generation = line.split()
            if sign == "+":
                there[name] = int(generation)
            elif sign == "?":
                leaving.add(name)
            else:
                del there[name]
                gone.add(name)
        store = await EmbeddedStore.open(tmp_path)
        registry = Registry(store)
        await registry.start()
        view = registry.view.tenant("t").models
        # An update or an unregister may have been stored without the answer getting out; never the other way round.
        missing = [name for name in there if name not in view and name not in leaving]
        assert not missing, f"round {round_number}: {len(missing)} of {len(there)} lost, {missing[:5]}"
        older = [name for name, generation in there.items() if name in view and view[name].generation < generation]
        assert not older, f"round {round_number}: {older[:5]}"
        back = [name for name in gone if name in view]
        assert not back, f"round {round_number}: {back[:5]}"
        await registry.close()
        await store.close()
    assert len(there) > 1000
