"""Archives that are refused, one for each way in which an archive can do harm; and what a good one becomes."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime_adapters.artifacts.errors import ArtifactTooLarge, UnsafeArchive
from runtime_adapters.artifacts.unpack import UnpackLimits, plan_unpack, unpack
from runtime_adapters.errors import BadArtifact

LIMITS = UnpackLimits(bytes_max=1_000_000, files_max=50, ratio_max=10, ratio_free_bytes=10_000)


def a_zip(path: Path, *members: tuple[str, bytes], mode: int = 0o644, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.filename = name  # as it is: ZipInfo cuts at a NUL
            info.external_attr = mode << 16
            info.compress_type = method
            archive.writestr(info, content)
    return path


def a_tar(path: Path, *members: tarfile.TarInfo | tuple[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def opened_into(archive: Path, kind: str, into: Path, limits: UnpackLimits = LIMITS) -> dict[str, bytes]:
    plan = plan_unpack(archive, kind, limits)
    into.mkdir()
    records = unpack(archive, kind, plan, into, limits)
    found = {path.relative_to(into).as_posix(): path.read_bytes() for path in into.rglob("*") if path.is_file()}
    assert sorted(found) == [record.name for record in records]
    return found


BAD_NAMES = [
    "../x",
    "a/../../x",
    "..",
    "/etc/x",
    "//x",
    "a\\..\\x",
    "C:/x",
    "c:x",
    "a\nb",
    "x" * 256,
    "/".join("d" * 40),
    "a/" * 600 + "x",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_escape_or_confuse_are_refused(name: str, tmp_path: Path) -> None:
    for archive, kind in (
        (a_zip(tmp_path / "m.zip", (name, b"x")), "zip"),
        (a_tar(tmp_path / "m.tar", (name, b"x")), "tar"),
    ):
        if kind == "tar" and name.startswith("/"):
            continue
        with pytest.raises(UnsafeArchive, match="member"):
            plan_unpack(archive, kind, LIMITS)


@pytest.mark.parametrize(
    "names",
    [
        ("a", "a"),
        ("a", "./a"),
        ("a", "b/../a"),
        ("Model.onnx", "model.onnx"),
        ("\u00e9", "e\u0301"),
        ("d", "d/x"),
        ("d/x", "D"),
        ("stra\u00dfe", "STRASSE"),
    ],
)
def test_names_that_collide_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchive):
        plan_unpack(a_tar(tmp_path / "m.tar", *((name, b"x") for name in names)), "tar", LIMITS)


@pytest.mark.parametrize(
    "member",
    [
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("link", tarfile.SYMTYPE, "good"),
        special("link", tarfile.LNKTYPE, "good"),
        special("pipe", tarfile.FIFOTYPE),
        special("device", tarfile.CHRTYPE),
        special("disk", tarfile.BLKTYPE),
        special("holes", tarfile.GNUTYPE_SPARSE),
    ],
    ids=lambda member: member.name,
)
def test_tar_members_that_are_not_plain_files_are_refused(member: tarfile.TarInfo, tmp_path: Path) -> None:
    with pytest.raises(BadArtifact):
        plan_unpack(a_tar(tmp_path / "m.tar", ("good", b"x"), member), "tar", LIMITS)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_zip_members_that_are_not_plain_files_are_refused(kind: int, tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchive, match=r"link|special"):
        plan_unpack(a_zip(tmp_path / "m.zip", ("x", b"/etc/passwd"), mode=kind | 0o777), "zip", LIMITS)


def test_permissions_of_an_archive_are_not_applied(tmp_path: Path) -> None:
    info = tarfile.TarInfo("tool")
    info.mode = 0o6777
    archive = a_tar(tmp_path / "m.tar", info, ("other", b"x"))
    opened_into(archive, "tar", tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out/tool").stat().st_mode) & 0o7111 == 0


def test_zeros_that_compress_a_thousandfold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchive, match="at most 10000 are allowed"):
        plan_unpack(a_zip(tmp_path / "m.zip", ("zeros", bytes(500_000))), "zip", LIMITS)
    with pytest.raises(UnsafeArchive, match="at most 10000 are allowed"):
        plan_unpack(a_tar(tmp_path / "m.tgz", ("zeros", bytes(500_000)), mode="w:gz"), "tar.gz", LIMITS)


def test_more_than_the_limit_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    archive = a_tar(tmp_path / "m.tar", *((f"f{number}", os.urandom(300_000)) for number in range(4)))
    with pytest.raises(UnsafeArchive, match="1000000 in all"):
        plan_unpack(archive, "tar", LIMITS)


def test_too_many_members_are_refused_directories_included(tmp_path: Path) -> None:
    directories = [special(f"d{number}", tarfile.DIRTYPE) for number in range(60)]
    with pytest.raises(ArtifactTooLarge, match="more than 50 members"):
        plan_unpack(a_tar(tmp_path / "m.tar", *directories), "tar", LIMITS)


def test_a_header_that_claims_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type = tarfile.GNUTYPE_LONGNAME
    header.size = 8 * 1024**3
    with gzip.open(tmp_path / "m.tgz", "wb", compresslevel=1) as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(16 * 1024 * 1024))
    with pytest.raises(UnsafeArchive, match="header"):
        plan_unpack(tmp_path / "m.tgz", "tar.gz", UnpackLimits())


def test_members_that_share_their_bytes_count_once_each(tmp_path: Path) -> None:
    # The quoted-overlap bomb: many entries of the directory point at one compressed member.
    single = a_zip(tmp_path / "one.zip", ("aaaaa", os.urandom(9000)), method=zipfile.ZIP_STORED).read_bytes()
    directory_at = single.index(b"PK\x01\x02")
    directory = single[directory_at : single.index(b"PK\x05\x06")]
    copies = b"".join(directory.replace(b"aaaaa", b"%05d" % number) for number in range(40))
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 40, 40, len(copies), directory_at, 0)
    (tmp_path / "m.zip").write_bytes(single[:directory_at] + copies + end)
    with pytest.raises(BadArtifact):
        opened_into(tmp_path / "m.zip", "zip", tmp_path / "out")


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    whole = bytearray(a_zip(tmp_path / "m.zip", ("x", b"abc")).read_bytes())
    whole[whole.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "m.zip").write_bytes(whole)
    with pytest.raises(UnsafeArchive, match="encrypted"):
        plan_unpack(tmp_path / "m.zip", "zip", LIMITS)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_compression_that_chooses_its_own_memory_is_refused(method: int, tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchive, match="method"):
        plan_unpack(a_zip(tmp_path / "m.zip", ("x", b"abc"), method=method), "zip", LIMITS)


def cut(whole: bytes, share: float) -> bytes:
    return whole[: int(len(whole) * share)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.55, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_truncated_archive_is_never_taken_for_a_smaller_one(kind: str, share: float, tmp_path: Path) -> None:
    members = [(f"f{number}", os.urandom(3000)) for number in range(8)]
    path = tmp_path / "m"
    if kind == "zip":
        a_zip(path, *members)
    else:
        a_tar(path, *members, mode="w:gz" if kind == "tar.gz" else "w")
        if kind == "tar":  # tarfile pads to 10 KiB: two blocks of zeros are the end, the rest is not needed
            path.write_bytes(path.read_bytes()[: 8 * (512 + 3072) + 1024])
    path.write_bytes(cut(path.read_bytes(), share))
    if kind == "tar" and share >= 0.99:
        assert len(opened_into(path, kind, tmp_path / "out")) == 8
        return
    with pytest.raises(BadArtifact):
        opened_into(path, kind, tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("zip", lambda path, members: a_zip(path, *members)),
        ("tar", lambda path, members: a_tar(path, *members)),
        ("tar.gz", lambda path, members: a_tar(path, *members, mode="w:gz")),
    ],
)
def test_a_good_archive_becomes_its_files(
    kind: str, make: Callable[[Path, list[tuple[str, bytes]]], Path], tmp_path: Path
) -> None:
    files = {"model.onnx": os.urandom(5000), "data/weights.bin": os.urandom(70_000), "data/\u00fcber.txt": b""}
    archive = make(tmp_path / "m", list(files.items()))
    assert opened_into(archive, kind, tmp_path / "out") == files


def test_a_single_directory_at_the_top_is_the_root(tmp_path: Path) -> None:
    inside = a_tar(tmp_path / "1.tar", special("model", tarfile.DIRTYPE), ("model/a", b"a"), ("model/d/b", b"b"))
    assert opened_into(inside, "tar", tmp_path / "one") == {"a": b"a", "d/b": b"b"}
    beside = a_tar(tmp_path / "2.tar", ("model/a", b"a"), ("readme", b"b"))
    assert opened_into(beside, "tar", tmp_path / "two") == {"model/a": b"a", "readme": b"b"}


def test_archives_inside_archives_stay_closed(tmp_path: Path) -> None:
    inner = a_zip(tmp_path / "inner.zip", ("x", b"abc")).read_bytes()
    assert opened_into(a_zip(tmp_path / "m.zip", ("a/inner.zip", inner), ("a/b", b"")), "zip", tmp_path / "out") == {
        "inner.zip": inner,
        "b": b"",
    }


def test_an_archive_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="no file"):
        plan_unpack(a_tar(tmp_path / "m.tar", special("d", tarfile.DIRTYPE)), "tar", LIMITS)


def test_a_gzip_whose_sum_does_not_hold_is_refused(tmp_path: Path) -> None:
    path = a_tar(tmp_path / "m.tgz", ("a", os.urandom(5000)), mode="w:gz")
    whole = bytearray(path.read_bytes())
    whole[-6] ^= 1
    path.write_bytes(whole)
    with pytest.raises(BadArtifact):
        plan_unpack(path, "tar.gz", LIMITS)
