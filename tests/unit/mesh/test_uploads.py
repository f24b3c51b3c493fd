"""Artifacts that came with a load request."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from mesh.threads import in_thread
from mesh.uploads import FILES_MAX, BadUpload, Uploads, UploadsFull
from placement.records import ModelRecord, ModelSpec
from placement.view import Changes, ModelChange

MANY_BYTES = 1 << 30
FILE = {"model.onnx": b"m" * 10_000}
"""Charged with 10,000 bytes and a block for its directory."""
FILE_NAME = hashlib.sha256(b"model.onnx\0" + b"10000\0" + FILE["model.onnx"]).hexdigest()


def path_of(uri: str) -> Path:
    return Path(urlparse(uri).path)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def opened(directory: Path, *registered: ModelRecord, tenant_bytes_max: int = MANY_BYTES) -> Uploads:
    uploads = Uploads(directory, tenant_bytes_max, in_thread)
    await uploads.start(registered)
    return uploads


def record(uri: str, tenant: str = "t", model_id: str = "m") -> ModelRecord:
    return ModelRecord(
        tenant, model_id, ModelSpec(uri=uri), generation=1, revision=1, registered_at_s=1.0, generation_at_s=1.0
    )


async def register(uploads: Uploads, files: Mapping[str, bytes], tenant: str = "t", model_id: str = "m") -> ModelRecord:
    async with uploads.kept(tenant, files) as uri:
        found = record(uri, tenant, model_id)
        uploads.follow(Changes(1, (ModelChange(tenant, model_id, None, found),)))
    return found


async def change(uploads: Uploads, before: ModelRecord, after: ModelRecord | None) -> None:
    uploads.follow(Changes(2, (ModelChange(before.tenant, before.id, before, after),)))
    await uploads.close()


async def test_one_file_is_an_artifact_and_several_are_a_directory(tmp_path: Path) -> None:
    uploads = await opened(tmp_path)
    async with uploads.kept("t", {"model.onnx": b"m"}) as uri:
        assert path_of(uri).read_bytes() == b"m"
    async with uploads.kept("t", {"model.onnx": b"m", "data/weights": b"w"}) as uri:
        assert (path_of(uri) / "data" / "weights").read_bytes() == b"w"


async def test_equal_files_are_kept_once_and_charged_to_each_tenant_that_names_them(tmp_path: Path) -> None:
    uploads = await opened(tmp_path)
    first = await register(uploads, {"a": b"1", "b": b"2"})
    again = await register(uploads, {"b": b"2", "a": b"1"}, model_id="other")
    theirs = await register(uploads, {"a": b"1", "b": b"2"}, tenant="u")
    assert first.spec.uri == again.spec.uri == theirs.spec.uri
    assert len(names_in(tmp_path)) == 1
    assert uploads.used_bytes("t") == uploads.used_bytes("u") > 0


async def test_what_nobody_registered_is_gone_at_once(tmp_path: Path) -> None:
    uploads = await opened(tmp_path)
    async with uploads.kept("t", FILE):
        assert uploads.used_bytes("t") > 0
    await uploads.close()
    assert not names_in(tmp_path)
    assert uploads.used_bytes("t") == 0


async def test_an_upload_leaves_with_its_last_registration(tmp_path: Path) -> None:
    uploads = await opened(tmp_path)
    first, second = await register(uploads, FILE), await register(uploads, FILE, model_id="second")
    await change(uploads, first, replace(first, spec=ModelSpec(uri="file:///elsewhere"), generation=2))
    assert path_of(second.spec.uri).read_bytes() == FILE["model.onnx"]
    await change(uploads, second, None)
    assert not names_in(tmp_path)
    assert uploads.used_bytes("t") == 0


async def test_a_change_that_keeps_the_uri_keeps_the_upload(tmp_path: Path) -> None:
    uploads = await opened(tmp_path)
    first = await register(uploads, FILE)
    await change(uploads, first, replace(first, spec=first.spec.replaced(pinned=True)))
    assert path_of(first.spec.uri).exists()


async def test_a_tenant_keeps_no_more_than_it_may_and_others_are_untouched(tmp_path: Path) -> None:
    uploads = await opened(tmp_path, tenant_bytes_max=20_000)
    first = await register(uploads, FILE)
    with pytest.raises(UploadsFull, match=r"tenant 't' keeps 14,096 bytes .* 20,000 are allowed.*--uploads-max"):
        await register(uploads, {"model.onnx": b"n" * 10_000}, model_id="second")
    await register(uploads, FILE, model_id="again")  # the same bytes cost nothing
    await register(uploads, {"model.onnx": b"n" * 10_000}, tenant="u")
    await change(uploads, first, None)
    assert uploads.used_bytes("t") == 14_096  # `again` names it


async def test_empty_files_and_deep_directories_are_not_free(tmp_path: Path) -> None:
    uploads = await opened(tmp_path)
    await register(uploads, {f"{'d/' * 50}{number}": b"" for number in range(100)})
    assert uploads.used_bytes("t") > 100 * 50 * 4096


async def test_after_a_restart_the_registrations_tell_what_stays_and_whose_it_is(tmp_path: Path) -> None:
    before = await opened(tmp_path)
    kept, dropped = await register(before, FILE), await register(before, {"model.onnx": b"other"}, model_id="dropped")
    charged_bytes = before.used_bytes("t")
    (tmp_path / ".unfinished-1").mkdir()
    uploads = await opened(tmp_path, kept)
    await uploads.close()
    assert names_in(tmp_path) == [path_of(kept.spec.uri).parent.name]
    assert 0 < uploads.used_bytes("t") < charged_bytes
    assert not path_of(dropped.spec.uri).exists()


async def test_files_that_come_while_equal_ones_leave_are_there(tmp_path: Path) -> None:
    uploads = await opened(tmp_path)
    first = await register(uploads, FILE)
    uploads.follow(Changes(2, (ModelChange("t", "m", first, None),)))
    second = await register(uploads, FILE)
    await uploads.close()
    assert path_of(second.spec.uri).read_bytes() == FILE["model.onnx"]


async def test_a_caller_that_leaves_while_files_are_written_leaves_nothing(tmp_path: Path) -> None:
    writes = asyncio.Event()

    def on_thread(name: str, work: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        if tmp_path / FILE_NAME in arguments:
            writes.set()
        return in_thread(name, work, *arguments)

    uploads = Uploads(tmp_path, MANY_BYTES, on_thread)
    upload = asyncio.create_task(register(uploads, FILE))
    await writes.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    await uploads.close()
    assert not names_in(tmp_path)
    assert uploads.used_bytes("t") == 0


@pytest.mark.parametrize("path", ["", ".", "/etc/passwd", "../x", "a/../../x", "a\0b", "a" * 300])
async def test_files_stay_within_their_directory(tmp_path: Path, path: str) -> None:
    uploads = await opened(tmp_path)
    with pytest.raises(BadUpload, match="no path within"):
        await register(uploads, {path: b"x"})


async def test_there_is_a_limit_to_files(tmp_path: Path) -> None:
    uploads = await opened(tmp_path)
    for count in (0, FILES_MAX + 1):
        with pytest.raises(BadUpload, match=f"{count} files"):
            await register(uploads, {f"f{number}": b"" for number in range(count)})
