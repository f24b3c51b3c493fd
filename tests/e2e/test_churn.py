"""Everything at once on a pod that holds a fifth of its models: whatever is answered is right, and nothing is left.

Threads infer, replace, unregister, pin, alias and give up, chosen by a seed. Every answer must be one that some
generation of that name could give; every error must be one that the caller's own doing explains; afterwards the pod
is at rest, its books balance, and its log holds no defect.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from mesh.client import (
    AlreadyExists,
    Client,
    DeadlineExceeded,
    HexcombError,
    NotFound,
    Overloaded,
    Refused,
    RetryPolicy,
    Unavailable,
)

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, StartPod

SECONDS = 8.0
THREADS = 6
NAMES = [f"m{index}" for index in range(12)]
ALIASES = ["v0", "v1"]
FACTORS = (2.0, 3.0, 4.0, 5.0, 6.0)
EXPLAINED = (AlreadyExists, DeadlineExceeded, NotFound, Overloaded, Refused, Unavailable)


def test_whatever_is_done_at_once_answers_are_right_and_nothing_is_left(start_pod: StartPod, files: ModelFiles) -> None:
    pod = start_pod(
        capacity="10MiB",
        residency_min_s=0,
        failure_backoff_base_s=0.1,
        failure_backoff_max_s=0.2,
        trusted_prefixes=f"{files.directory.as_uri()}/",
    )
    kinds = [files.scale(factor, 3 << 20) for factor in FACTORS]
    x = kinds[0].inputs
    unexplained: list[str] = []
    answered = [0] * THREADS
    ends_s = time.monotonic() + SECONDS

    def one_act(client: Client, chance: random.Random) -> bool:
        """One random act; whether it was an answered inference."""
        name = chance.choice(NAMES)
        kind = chance.choice(kinds)
        match chance.randrange(40):
            case 0 | 1:
                client.register(name, uri=kind.uri, pinned=chance.random() < 0.05)
            case 2 | 3:
                client.register(name, uri=kind.uri, if_generation=client.describe(name).generation)
            case 4:
                client.unregister(name)
            case 5:
                client.set_pinned(name, chance.random() < 0.2)
            case 6:
                client.set_alias(chance.choice(ALIASES), name, force=chance.random() < 0.3)
            case 7:
                client.delete_alias(chance.choice(ALIASES))
            case 8:
                client.infer(name, x, timeout_s=0.001)
            case 9:
                client.ensure_loaded(name, wait=chance.random() < 0.5)
            case 10:
                client.register(name, uri="file:///nowhere/at/all.onnx", format="onnx")
            case 11:
                list(client.list_models())
            case _:
                target = name if chance.random() < 0.9 else chance.choice(ALIASES)
                y = client.infer(target, x).outputs["y"]
                factor = y[0, 1]
                if factor not in FACTORS or not np.array_equal(y, x["x"] * factor):
                    unexplained.append(f"{target} answered {y}")
                return True
        return False

    def act(number: int) -> None:
        chance = random.Random(number)
        with pod.client(timeout_s=10.0, retry=RetryPolicy(attempts_max=1)) as client:
            while time.monotonic() < ends_s:
                try:
                    answered[number] += one_act(client, chance)
                except EXPLAINED:
                    continue
                except HexcombError as error:
                    unexplained.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=act, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert unexplained == []
    assert min(answered) > 20, answered

    with pod.client() as client:
        for alias in ALIASES:
            client.delete_alias(alias)
        client.unregister_many(NAMES)
        pod.wait_until(lambda: pod.status().models_resident == 0, "all copies left")
        status = pod.wait_settled()
        (device,) = (tier for tier in status.tiers if tier.tier == "device")
        assert (status.models_registered, device.resident_bytes) == (0, 0)
        for index, kind in enumerate(kinds):  # and it serves as if nothing had been
            client.register(f"fresh-{index}", uri=kind.uri)
            np.testing.assert_array_equal(client.infer(f"fresh-{index}", x).outputs["y"], kind.expected["y"])
    assert " ERROR " not in pod.log_text(), pod.log_text()[-4000:]
    assert "incident" not in pod.log_text()
    assert pod.stop() == 0
