"""What a URI means, who may use which storage key, and what the operator's rules cover."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runtime_adapters.artifacts.credentials import StorageKeys
from runtime_adapters.artifacts.errors import ArtifactDenied, BadLocation, BadStorageConfig
from runtime_adapters.artifacts.locations import parse_location
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.artifacts.storage_keys import HttpKey, S3Key, UnsupportedKey

SECRET = "s3cr3t-value-nobody-may-see"

NORMAL_FORMS = [
    ("/models/m.onnx", "file:///models/m.onnx"),
    ("file:///models//m%20x.onnx", "file:///models/m x.onnx"),
    ("file://localhost/m", "file:///m"),
    ("/with%20percent", "file:///with%20percent"),
    ("HTTPS://Models.Example:443/a/b?c=d%2F", "https://models.example/a/b?c=d%2F"),
    ("http://h:8080/a", "http://h:8080/a"),
    ("http://[::1]:8080/a", "http://[::1]:8080/a"),
    ("s3://bucket/we ird/%20#?k.bin", "s3://bucket/we ird/%20#?k.bin"),
    ("s3://bucket/dir/", "s3://bucket/dir/"),
    ("gcs://bucket/a b", "gs://bucket/a b"),
    ("az://models@acct1/d/m.bin", "azure://models@acct1/d/m.bin"),
    ("abfss://models@acct1.dfs.core.windows.net/m", "azure://models@acct1/m"),
    ("https://acct1.blob.core.windows.net/models/d/a%20b", "azure://models@acct1/d/a b"),
    ("https://acct1.blob.core.windows.net/models/m?sig=1", "https://acct1.blob.core.windows.net/models/m?sig=1"),
    ("azure:///m", "azure:///m"),
    ("pvc://claim-1//d/", "pvc://claim-1/d"),
    ("hf://org/model", "hf://org/model"),
    ("hf://org/model:v1/sub/m.onnx", "hf://org/model:v1/sub/m.onnx"),
    ("hf://gpt2:main", "hf://gpt2:main"),
    ("oci://quay.io/org/model:1.0", "oci://quay.io/org/model:1.0"),
    ("oci://localhost:5000/m", "oci://localhost:5000/m"),
    (f"oci://r.io/m:1@sha256:{'a' * 64}", f"oci://r.io/m@sha256:{'a' * 64}"),
    ("git+https://Git.example:443/org/r.git@v1/x#sub/dir/", "git+https://git.example/org/r.git@v1/x#sub/dir"),
    ("git+http://h:8080/r", "git+http://h:8080/r"),
]


@pytest.mark.parametrize(("uri", "normal"), NORMAL_FORMS)
def test_a_uri_has_one_normal_form(uri: str, normal: str) -> None:
    assert parse_location(uri).uri == normal
    assert parse_location(normal).uri in (normal, normal.replace("%20", " "))


REFUSED = [
    ("", "empty"),
    ("relative/path", "absolute path"),
    ("ftp://bucket/x", "scheme"),
    ("file://host/path", "three slashes"),
    ("file:///a/../b", "`..`"),
    ("file:///a/%2e%2e/b", "`..`"),
    ("/a/../b", "`..`"),
    ("/a\x00b", "control"),
    ("http://h/a/../b", "`..`"),
    ("http://h/a/%2e%2E/b", "`..`"),
    ("http://h/a/.%2e/b", "`..`"),
    ("http://h/a%2f..%2fb", "slash"),
    ("http://h/a%5c..%5cb", "backslash"),
    ("http://h/a\\..\\b", "backslashes"),
    ("http://h/a b", "spaces"),
    ("http://h/a\tb", "control"),
    ("http://h/%zz", "hex digits"),
    ("http://user:pw@h/a", "credentials"),
    ("http://h/a#frag", "fragment"),
    ("http:///a", "host"),
    ("http://h:99999/a", "ort"),
    ("http://bad_host!/a", "host"),
    ("s3://b!/x", "bucket"),
    ("s3://bucket/a//b", "two slashes"),
    ("s3://bucket/a/../b", "`..`"),
    ("s3://bucket/./b", "`.`"),
    ("s3://bucket/" + "x" * 5000, "characters"),
    ("gs://bucket/../x", "`..`"),
    ("az://models@acct.example.net/m", "account"),
    ("az://mo..dels!@acct1/m", "container"),
    ("pvc://claim/../other/m", "`..`"),
    ("pvc:///m", "claim"),
    ("hf://org/model/../x", "`..`"),
    ("hf://org/..", "write hf://"),
    ("hf://org/model:a b", "branch, tag"),
    ("oci://model/x:1", "no registry"),
    ("oci://r.io/Upper:1", "repository"),
    ("oci://r.io/m@sha256:123", "64 lower-case"),
    ("oci://r.io:99x/m", "host"),
    ("git+https://user:pw@h/r", "credentials"),
    ("git+https://h/r@../x", "branch, tag"),
    ("git+https://h/r@v1#../x", "`..`"),
    ("git+https://h/r?x=1", "query"),
    ("git+ssh://h/r", "scheme"),
]


@pytest.mark.parametrize(("uri", "says"), REFUSED)
def test_a_uri_that_could_be_read_in_two_ways_is_refused(uri: str, says: str) -> None:
    with pytest.raises(BadLocation, match=says):
        parse_location(uri)


def test_neither_a_query_nor_a_password_is_shown() -> None:
    location = parse_location(f"https://h/m.onnx?sig={SECRET}")
    assert SECRET not in f"{location!r} {location.shown}"
    for uri in (f"http://user:{SECRET}@h/a", f"ftp://user:{SECRET}@h/a", f"ftp://b/x?sig={SECRET}"):
        with pytest.raises(BadLocation) as caught:
            parse_location(uri)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "kind", "suffix"),
    [
        ("/m.zip", "zip", ".zip"),
        ("/M.TAR", "tar", ".tar"),
        ("/m.tar.gz", "tar.gz", ".gz"),
        ("https://h/m.tgz?x=.zip", "tar.gz", ".tgz"),
        ("https://h/m?x=.zip", None, ""),
        ("/m.skops", None, ".skops"),
        ("/m.pt2", None, ".pt2"),
        ("/m.npz", None, ".npz"),
        ("/m.a b", None, ""),
    ],
)
def test_only_the_name_says_what_is_an_archive(uri: str, kind: str | None, suffix: str) -> None:
    location = parse_location(uri)
    assert (location.archive_kind, location.suffix) == (kind, suffix)


TRUST = [
    ("s3://b1b/tr", "s3://b1b/tr/x", True),
    ("s3://b1b/tr", "s3://b1b/tr", True),
    ("s3://b1b/tr/", "s3://b1b/tr/x", True),
    ("s3://b1b/tr", "s3://b1b/trusted-not/x", False),
    ("s3://b1b/tr", "s3://b1b-2/tr/x", False),
    ("s3://b1b", "s3://b1b/any", True),
    ("https://h/tr", "https://h/tr/x?sig=1", True),
    ("https://h/tr", "http://h/tr/x", False),
    ("https://h/tr", "https://h:444/tr/x", False),
    ("https://H:443/tr", "https://h/tr/x", True),
    ("https://h/tr", "https://h/t%72/x", False),
    ("file:///tr", "/tr/x", True),
    ("/tr", "file:///tr//x", True),
    ("/tr", "/trx", False),
    ("hf://org", "hf://org/model:v1/m.onnx", True),
    ("hf://org/model", "hf://org/model:v1/m.onnx", True),
    ("hf://org/model", "hf://org/model", True),
    ("hf://org/model:v1", "hf://org/model:v1/m.onnx", True),
    ("hf://org/model:v1", "hf://org/model:v2", False),
    ("hf://org/model", "hf://org/model-2", False),
    ("oci://r.io/org", "oci://r.io/org/m:1", True),
    ("oci://r.io/org/m", "oci://r.io/org/m2:1", False),
    ("git+https://h/org", "git+https://h/org/r@v1#sub", True),
    ("git+https://h/org/r@v1", "git+https://h/org/r@v2#sub", False),
    ("pvc://claim/tr", "pvc://claim/tr/m", True),
    ("az://models@acct1/tr", "https://acct1.blob.core.windows.net/models/tr/m", True),
]


@pytest.mark.parametrize(("prefix", "uri", "trusted"), TRUST)
def test_trust_compares_whole_path_segments(prefix: str, uri: str, trusted: bool) -> None:
    assert SourcePolicy(trusted_prefixes=(prefix,)).trusts(parse_location(uri)) is trusted


def test_a_trusted_prefix_that_cannot_be_understood_stops_the_pod_at_its_start() -> None:
    for prefix in ("s3://b1b/../x", "relative", "https://h/x?y"):
        with pytest.raises(BadLocation):
            SourcePolicy(trusted_prefixes=(prefix,))


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "[::ffff:168.63.129.16]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[::169.254.169.254]",
    ],
)
def test_link_local_addresses_are_refused_in_every_spelling(host: str) -> None:
    with pytest.raises(BadLocation, match="link-local"):
        SourcePolicy().check(parse_location(f"http://{host}/latest/meta-data"))


def test_http_is_limited_to_the_hosts_that_the_operator_allows() -> None:
    policy = SourcePolicy(http_hosts=("models.example",))
    policy.check(parse_location("https://MODELS.example:8443/m"))
    with pytest.raises(BadLocation, match="not among the hosts"):
        policy.check(parse_location("https://models.example.evil/m"))


def test_the_hosts_of_registries_and_repositories_are_limited_likewise() -> None:
    policy = SourcePolicy(http_hosts=("models.example",))
    for uri in ("oci://models.example:5000/m:1", "git+https://models.example/r"):
        policy.check(parse_location(uri))
    for uri in ("oci://other.example/m:1", "git+https://other.example/r"):
        with pytest.raises(BadLocation, match="not among the hosts"):
            policy.check(parse_location(uri))
        with pytest.raises(BadLocation, match="link-local"):
            SourcePolicy().check(parse_location(uri.replace("other.example", "169.254.169.254")))


def test_a_claim_needs_a_directory_of_claims() -> None:
    with pytest.raises(BadLocation, match="--pvc-root"):
        SourcePolicy().check(parse_location("pvc://claim/m"))


def test_no_file_prefix_at_all_forbids_every_file() -> None:
    with pytest.raises(BadLocation, match="no directory at all"):
        SourcePolicy(file_prefixes=()).check(parse_location("/m.onnx"))


# Storage keys ---------------------------------------------------------------------------------------------------

AT = {
    "s3": parse_location("s3://bucket/m"),
    "http": parse_location("http://h/m"),
    "https": parse_location("https://h/m"),
}
S3_ENTRY = {"type": "s3", "access_key_id": "KEY", "secret_access_key": SECRET, "endpoint_url": "http://minio:9000"}


def written(path: Path, entries: object) -> Path:
    path.write_text(json.dumps(entries))
    return path


def test_a_key_belongs_to_its_tenant(tmp_path: Path) -> None:
    keys = StorageKeys.from_path(
        written(tmp_path / "storage.json", {"mine": S3_ENTRY, "a/theirs": S3_ENTRY, "*/shared": S3_ENTRY})
    )
    assert isinstance(keys.find("default", "mine", AT["s3"]), S3Key)
    assert isinstance(keys.find("a", "theirs", AT["s3"]), S3Key)
    assert isinstance(keys.find("a", "shared", AT["s3"]), S3Key)
    errors = []
    for name in ("mine", "no-such-key"):
        with pytest.raises(ArtifactDenied) as caught:
            keys.find("a", name, AT["s3"])
        errors.append(str(caught.value).replace(name, "KEY"))
    assert errors[0] == errors[1]


def test_without_a_name_the_default_key_of_the_type_is_used(tmp_path: Path) -> None:
    entries = {"default": {"type": "http", "url": "https://h/"}, "default_s3": S3_ENTRY, "*/default": S3_ENTRY}
    keys = StorageKeys.from_path(written(tmp_path / "storage.json", entries))
    assert isinstance(keys.find("default", None, AT["s3"]), S3Key)
    assert isinstance(keys.find("default", "", AT["https"]), HttpKey)
    assert isinstance(keys.find("other", None, AT["s3"]), S3Key)
    assert keys.find("other", None, AT["http"]) is None
    assert StorageKeys().find("default", None, AT["s3"]) is None


def test_a_key_of_another_type_is_refused(tmp_path: Path) -> None:
    keys = StorageKeys.from_path(written(tmp_path / "k.json", {"mine": S3_ENTRY, "g": {"type": "hdfs", "x": 1}}))
    with pytest.raises(ArtifactDenied, match="of type s3"):
        keys.find("default", "mine", AT["https"])
    with pytest.raises(ArtifactDenied, match="of type hdfs"):
        keys.find("default", "g", AT["s3"])
    assert keys.find("default", None, AT["s3"]) is None
    assert UnsupportedKey("hdfs") == UnsupportedKey("hdfs")


def test_a_directory_of_secrets_is_read_like_a_mounted_secret(tmp_path: Path) -> None:
    written(tmp_path / "mine", S3_ENTRY)
    (tmp_path / "tenant-a").mkdir()
    written(tmp_path / "tenant-a" / "theirs.json", S3_ENTRY)
    (tmp_path / "..data").mkdir()
    written(tmp_path / "..data" / "mine", {"type": "broken"})
    keys = StorageKeys.from_path(tmp_path)
    assert repr(keys) == "StorageKeys(2 keys)"
    assert isinstance(keys.find("tenant-a", "theirs", AT["s3"]), S3Key)


def test_yaml_and_json_text_inside_a_secret_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "storage.yaml"
    path.write_text(f"mine: '{json.dumps(S3_ENTRY)}'\nweb:\n  type: http\n  url: https://h/x\n  headers: {{A: b}}\n")
    keys = StorageKeys.from_path(path)
    found = keys.find("default", "mine", AT["s3"])
    assert isinstance(found, S3Key)
    assert (found.secret_access_key, found.endpoint) == (SECRET, "http://minio:9000")
    assert keys.find("default", "web", AT["http"]) == HttpKey("https://h:443", {"A": "b"})


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path / "storage.json", {"mine": S3_ENTRY})
    keys = StorageKeys.from_path(path)
    written(tmp_path / "new.json", {"mine": S3_ENTRY | {"region": "mars-1"}})
    os.replace(tmp_path / "new.json", path)
    found = keys.find("default", "mine", AT["s3"])
    assert isinstance(found, S3Key)
    assert found.region == "mars-1"


def test_trusted_prefixes_hold_for_a_tenants_own_key_only_if_it_says_so(tmp_path: Path) -> None:
    entries = {"mine": S3_ENTRY, "a/k": S3_ENTRY, "b/k": S3_ENTRY | {"trusted_prefixes_apply": True}}
    keys = StorageKeys.from_path(written(tmp_path / "k.json", entries))
    applies = [
        key.trusted_prefixes_apply
        for key in (
            keys.find("default", "mine", AT["s3"]),
            keys.find("a", "k", AT["s3"]),
            keys.find("b", "k", AT["s3"]),
        )
        if isinstance(key, S3Key)
    ]
    assert applies == [True, False, True]


BROKEN = [
    ("no json: [", "neither JSON nor YAML"),
    ("[1]", "mapping"),
    ('{"k": 1}', "no mapping"),
    ('{"k": {"a": 1}}', "type is missing"),
    ('{"k": {"type": "s3", "colour": "SECRET"}}', "colour"),
    ('{"k": {"type": "s3", "access_key_id": "SECRET"}}', "come together"),
    ('{"k": {"type": "s3", "region": 5}}', "must be text"),
    ('{"k": {"type": "s3", "endpoint_url": "minio:9000"}}', "endpoint_url must be"),
    ('{"k": {"type": "http"}}', "field url"),
    ('{"k": {"type": "http", "url": "https://u:SECRET@h/"}}', "url must be"),
    ('{"k": {"type": "http", "url": "https://h/", "headers": {"A": 5}}}', "headers is a mapping"),
    ('{"a/b/c": {"type": "s3"}}', "a name is"),
    ('{"k": "{SECRET"}', "neither JSON nor YAML"),
    ('{"k": {"type": "s3", "trusted_prefixes_apply": "yes"}}', "true or false"),
]


@pytest.mark.parametrize(("text", "says"), BROKEN)
def test_a_slip_in_the_storage_config_names_the_field_and_no_secret(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "storage.json"
    path.write_text(text.replace("SECRET", SECRET))
    with pytest.raises(BadStorageConfig, match=says) as caught:
        StorageKeys.from_path(path)
    assert SECRET not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_storage_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadStorageConfig, match="--storage-config"):
        StorageKeys.from_path(tmp_path / "none.json")


def test_no_repr_shows_a_secret() -> None:
    key = S3Key("http://h", access_key_id=SECRET, secret_access_key=SECRET, session_token=SECRET, certificate=SECRET)
    assert SECRET not in repr([key, HttpKey("http://h:80", {"A": SECRET}, SECRET), StorageKeys({("t", "k"): key})])
