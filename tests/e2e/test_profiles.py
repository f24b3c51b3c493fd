"""What a pod measures of a content outlives it, in the store that all pods share."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mesh.client.operations import registration
from placement.keys import PROFILES
from placement.profiles import Profile, profile_from_json
from placement.store.embedded import EmbeddedStore
from tests.e2e.conftest import ModelFiles, StartPod

WEIGHT_BYTES = 8 << 20


def profiles_in(data_dir: Path) -> list[Profile | None]:
    async def read() -> list[Profile | None]:
        store = await EmbeddedStore.open(data_dir)
        try:
            return [profile_from_json(item.value) for item in (await store.range(PROFILES)).items]
        finally:
            await store.close()

    return asyncio.run(read())


def test_a_measured_size_is_in_the_store_and_wrong_declarations_are_told(
    start_pod: StartPod, files: ModelFiles, tmp_path: Path
) -> None:
    example = files.scale(3.0, WEIGHT_BYTES)
    data_dir = tmp_path / "data"
    pod = start_pod(data_dir=data_dir, capacity="64MiB")
    with pod.client() as client:
        entry = registration("m", uri=example.uri, format="onnx", capacity_hint_bytes=200 << 20)
        client.register_many([entry])
        assert client.infer("m", example.inputs).outputs, "what is declared does not turn it away"
        pod.wait_until(lambda: client.describe("m").copies[0].form != "fetched", "it was prepared and measured")
        (copy,) = client.describe("m").copies
        explained = client.explain("m")
    assert any("declares 209,715,200 bytes" in line.text for line in explained.history)
    assert pod.stop() == 0
    (profile,) = profiles_in(data_dir)
    assert profile is not None
    assert profile.total_bytes == copy.host_bytes + copy.mapped_bytes
    assert WEIGHT_BYTES < profile.total_bytes < 1.1 * WEIGHT_BYTES
    assert profile.load_s > 0
    assert profile.fetch_s > 0

    again = start_pod(data_dir=data_dir, capacity="64MiB")
    with again.client() as client:
        client.infer("m", example.inputs)
    again.wait_settled()
    assert again.stop() == 0
    assert len(profiles_in(data_dir)) == 1
