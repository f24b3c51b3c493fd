"""Entries of storage configs in the forms of ModelMesh, KServe and Kubernetes: which key they are, what they hide."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from runtime_adapters.artifacts.credentials import StorageKeys
from runtime_adapters.artifacts.errors import ArtifactDenied, BadStorageConfig
from runtime_adapters.artifacts.key_entries import parse_entry
from runtime_adapters.artifacts.locations import parse_location
from runtime_adapters.artifacts.storage_keys import (
    AzureKey,
    GcsKey,
    GitKey,
    HfKey,
    HttpKey,
    OciKey,
    PvcKey,
    S3Key,
    StorageKey,
)

SECRET = "s3cr3t-value-nobody-may-see"
ACCOUNT = json.dumps({"type": "service_account", "client_email": "me@x", "private_key": SECRET, "private_key_id": "7"})
KEPT = json.dumps({"private_key": SECRET, "client_email": "me@x", "private_key_id": "7"})
DOCKER = {"auths": {"quay.io": {"auth": base64.b64encode(f"me:{SECRET}".encode()).decode()}}}


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


ENTRIES: list[tuple[str, dict[str, Any], StorageKey]] = [
    (
        "ModelMesh's s3",
        {"type": "s3", "access_key_id": "K", "secret_access_key": SECRET, "default_bucket": "b", "region": "r"},
        S3Key(region="r", bucket="b", access_key_id="K", secret_access_key=SECRET),
    ),
    (
        "an anonymous s3 of KServe",
        {
            "type": "s3",
            "access_key_id": "K",
            "secret_access_key": SECRET,
            "anonymous": "True",
            "endpoint_url": "http://m",
        },
        S3Key("http://m"),
    ),
    (
        "KServe's S3 secret",
        {
            "AWS_ACCESS_KEY_ID": "K",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "S3_ENDPOINT": "minio:9000",
            "S3_USE_HTTPS": "0",
            "S3_VERIFY_SSL": "0",
            "AWS_DEFAULT_REGION": "r",
        },
        S3Key("http://minio:9000", "r", access_key_id="K", secret_access_key=SECRET),
    ),
    (
        "KServe's S3 secret with annotations, as kubectl prints it",
        {
            "kind": "Secret",
            "metadata": {
                "name": "s3",
                "annotations": {
                    "serving.kserve.io/s3-endpoint": "minio:9000",
                    "serving.kserve.io/s3-usehttps": "0",
                    "serving.kserve.io/s3-region": "r",
                },
            },
            "data": {"AWS_ACCESS_KEY_ID": base64_of("K"), "AWS_SECRET_ACCESS_KEY": base64_of(SECRET)},
        },
        S3Key("http://minio:9000", "r", access_key_id="K", secret_access_key=SECRET),
    ),
    (
        "ModelMesh's gcs",
        {"type": "gcs", "private_key": SECRET, "private_key_id": "7", "client_email": "me@x", "token_uri": "https://t"},
        GcsKey(service_account=KEPT),
    ),
    ("KServe's gs", {"type": "gs", "base64_service_account": base64_of(ACCOUNT)}, GcsKey(service_account=KEPT)),
    ("KServe's Google secret", {"gcloud-application-credentials.json": ACCOUNT}, GcsKey(service_account=KEPT)),
    (
        "ModelMesh's azure",
        {
            "type": "azure",
            "account_name": "acct1",
            "container": "c",
            "client_id": "i",
            "client_secret": SECRET,
            "tenant_id": "t",
        },
        AzureKey("acct1", "c", client_id="i", client_secret=SECRET, tenant_id="t"),
    ),
    (
        "Azure's connection string",
        {
            "type": "azure",
            "connection_string": f"DefaultEndpointsProtocol=https;AccountName=acct1;AccountKey={SECRET}==;"
            "EndpointSuffix=core.windows.net",
        },
        AzureKey("acct1", access_key=f"{SECRET}=="),
    ),
    (
        "KServe's Azure secret",
        {"AZ_CLIENT_ID": "i", "AZ_CLIENT_SECRET": SECRET, "AZ_TENANT_ID": "t", "AZ_SUBSCRIPTION_ID": "s"},
        AzureKey(client_id="i", client_secret=SECRET, tenant_id="t"),
    ),
    ("KServe's Azure key", {"AZURE_STORAGE_ACCESS_KEY": SECRET}, AzureKey(access_key=SECRET)),
    ("KServe's Hugging Face secret", {"HF_TOKEN": SECRET}, HfKey(token=SECRET)),
    (
        "KServe's HTTP secret",
        {"https-host": "models.example", "headers": f"Authorization: Bearer {SECRET}\nX-A: b\n"},
        HttpKey("https://models.example:443", {"Authorization": f"Bearer {SECRET}", "X-A": "b"}),
    ),
    ("Docker's", {".dockerconfigjson": json.dumps(DOCKER)}, OciKey({"quay.io": ("me", SECRET)})),
    (
        "ours for a registry",
        {"type": "oci", "registry": "localhost:5000", "username": "me", "password": SECRET, "insecure": True},
        OciKey({"localhost:5000": ("me", SECRET)}, ("localhost:5000",)),
    ),
    ("ours for git", {"type": "git", "url": "https://g/x", "password": SECRET}, GitKey("https://g:443", "", SECRET)),
    ("ModelMesh's pvc", {"type": "pvc", "name": "claim"}, PvcKey("claim")),
]


@pytest.mark.parametrize(("entry", "key"), [case[1:] for case in ENTRIES], ids=[case[0] for case in ENTRIES])
def test_an_entry_in_a_known_form_is_a_key_that_shows_no_secret(entry: dict[str, Any], key: StorageKey) -> None:
    found = parse_entry("k", entry, trusted_by_default=True)
    assert found == key
    assert SECRET not in repr(found)


SLIPS: list[tuple[dict[str, Any], str]] = [
    ({"type": "s3", "verify_ssl": "0", "endpoint_url": "https://h"}, "certificate"),
    ({"type": "gcs", "private_key": SECRET}, "come together"),
    ({"type": "gcs", "base64_service_account": SECRET + "!"}, "not base64"),
    ({"gcloud-application-credentials.json": SECRET}, "Google's JSON"),
    ({"type": "azure", "client_id": SECRET}, "come together"),
    ({"type": "azure", "connection_string": f"BlobEndpoint={SECRET}"}, "BlobEndpoint must be"),
    ({"type": "oci", "username": "me", "password": SECRET}, "registry"),
    ({".dockerconfigjson": SECRET}, "Docker's JSON"),
    ({"type": "git", "url": f"https://me:{SECRET}@h/"}, "url must be"),
    ({"kind": "Secret", "data": {"HF_TOKEN": SECRET + "!"}}, "is base64"),
    ({"https-host": "h", "headers": "{" + SECRET}, "neither JSON"),
]


@pytest.mark.parametrize(("entry", "says"), SLIPS)
def test_a_slip_in_an_entry_names_the_key_and_no_secret(entry: dict[str, Any], says: str) -> None:
    with pytest.raises(BadStorageConfig, match=says) as caught:
        parse_entry("mine", entry, trusted_by_default=True)
    assert "'mine'" in str(caught.value)
    assert SECRET not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_a_directory_in_a_tenants_directory_is_a_mounted_secret(tmp_path: Path) -> None:
    secret = tmp_path / "team-a" / "hub"
    secret.mkdir(parents=True)
    (secret / "HF_TOKEN").write_text(SECRET + "\n")
    (secret / "..data").mkdir()
    found = StorageKeys.from_path(tmp_path).find("team-a", "hub", parse_location("hf://org/m"))
    assert found == HfKey(token=SECRET, trusted_prefixes_apply=False)


def test_a_claim_is_found_by_its_name_and_by_nobody_elses_tenant(tmp_path: Path) -> None:
    config = tmp_path / "k.json"
    config.write_text(json.dumps({"a/x": {"type": "pvc", "name": "one"}, "*/y": {"type": "pvc", "name": "two"}}))
    keys = StorageKeys.from_path(config)
    one, two = parse_location("pvc://one/m"), parse_location("pvc://two/m")
    assert isinstance(keys.find("a", None, one), PvcKey)
    assert keys.find("b", None, one) is None
    assert isinstance(keys.find("b", None, two), PvcKey)
    with pytest.raises(ArtifactDenied):
        keys.find("b", "x", one)


def test_modelmeshs_default_keys_are_found_under_its_names(tmp_path: Path) -> None:
    config = tmp_path / "k.json"
    config.write_text(json.dumps({"default_gcs": {"type": "gcs"}, "default_azure": {"type": "azure"}}))
    keys = StorageKeys.from_path(config)
    assert isinstance(keys.find("default", None, parse_location("gs://bucket/m")), GcsKey)
    assert isinstance(keys.find("default", None, parse_location("az://models@acct1/m")), AzureKey)
