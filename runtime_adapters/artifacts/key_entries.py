"""One entry of a storage config, in the forms that people already have, as a storage key.

* **ModelMesh's and KServe's `storage-config`**: a JSON object with a `type`: s3, gcs (or gs), azure, http, pvc, and
  ours: hf, oci, git. Field names are theirs; a field that nobody knows is an error, since a misspelt `region` would
  otherwise be a request to the wrong server.
* **KServe's secrets**: no `type`; what is meant shows by the fields' names (`AWS_ACCESS_KEY_ID`,
  `gcloud-application-credentials.json`, `AZ_CLIENT_ID`, `HF_TOKEN`, `https-host`), and by Docker's `.dockerconfigjson`.
* **a whole Kubernetes Secret**, as `kubectl get secret -o yaml` prints it: its `data`, `stringData` and annotations
  (`serving.kserve.io/s3-endpoint` and its like).

Messages name the key and the field, never a value.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from runtime_adapters.artifacts.errors import BadStorageConfig
from runtime_adapters.artifacts.storage_keys import (
    AZURE_AUTHORITY,
    DEFAULT_REGION,
    HUGGING_FACE,
    AzureKey,
    GcsKey,
    GitKey,
    HfKey,
    HttpKey,
    OciKey,
    PvcKey,
    S3Key,
    StorageKey,
    UnsupportedKey,
    origin_of,
)

_FIELDS = {
    "s3": {
        *("access_key_id", "secret_access_key", "session_token", "endpoint_url", "region", "bucket", "default_bucket"),
        *("certificate", "anonymous", "verify_ssl"),
    },
    "gs": {
        *("service_account", "base64_service_account", "private_key", "private_key_id", "client_email", "token_uri"),
        *("bucket", "endpoint_url", "certificate"),
    },
    "azure": {
        *("account_name", "container", "connection_string", "access_key", "sas_token", "endpoint_url", "certificate"),
        *("client_id", "client_secret", "tenant_id", "authority_host"),
    },
    "http": {"url", "headers", "certificate"},
    "hf": {"token", "endpoint_url", "certificate"},
    "oci": {"registry", "username", "password", "auths", "insecure", "certificate"},
    "git": {"url", "username", "password"},
    "pvc": {"name"},
}
_COMMON_FIELDS = {"type", "trusted_prefixes_apply"}
_SAME_TYPES = {"gcs": "gs", "https": "http", "huggingface": "hf"}
_KSERVE_ANNOTATIONS = "serving.kserve.io/s3-"
_TRUE = ("1", "true", "yes")


def parse_entry(name: str, entry: object, trusted_by_default: bool) -> StorageKey:
    """The key that an entry describes. `name` is for errors. Raises BadStorageConfig."""
    if not isinstance(entry, Mapping):
        raise BadStorageConfig(f"storage key {name!r}: expected fields such as type and endpoint_url, found no mapping")
    if entry.get("kind") == "Secret":
        entry = _of_manifest(name, entry)
    if "type" not in entry:
        entry = _of_kserve_secret(name, entry)
    kind = entry.get("type")
    if not isinstance(kind, str) or not kind:
        raise BadStorageConfig(f"storage key {name!r}: field type is missing; it is one of {', '.join(_FIELDS)}")
    kind = _SAME_TYPES.get(kind, kind)
    if kind not in _FIELDS:
        return UnsupportedKey(kind)
    fields = _Fields(name, kind, entry)
    trusted = entry.get("trusted_prefixes_apply", trusted_by_default)
    if not isinstance(trusted, bool):
        raise BadStorageConfig(f"storage key {name!r}: trusted_prefixes_apply is true or false")
    return _PARSERS[kind](fields, trusted)


class _Fields:
    """The fields of one entry, and errors that name them."""

    def __init__(self, name: str, kind: str, entry: Mapping[Any, Any]) -> None:
        self.name = name
        self._entry = entry
        allowed = _COMMON_FIELDS | _FIELDS[kind]
        unknown = sorted(str(key) for key in entry if key not in allowed)
        if unknown:
            raise self.error(
                f"field {unknown[0][:80]!r} is not known for type {kind}; known ones are {', '.join(sorted(allowed))}"
            )

    def error(self, what: str) -> BadStorageConfig:
        return BadStorageConfig(f"storage key {self.name!r}: {what}")

    def text(self, field_name: str) -> str:
        """A field that must be there."""
        value = self._entry.get(field_name)
        if not isinstance(value, str) or not value:
            raise self.error(f"field {field_name} must be text (quote it) and not empty")
        return value

    def optional(self, field_name: str, default: str = "") -> str:
        """A field that may be absent, or empty, which is the same."""
        return default if self._entry.get(field_name) in (None, "") else self.text(field_name)

    def url(self, field_name: str, default: str = "") -> str:
        """An http(s) URL, if there is one."""
        value = self.optional(field_name, default)
        if value:
            self.origin(field_name, value)
        return value

    def origin(self, field_name: str, value: str) -> str:
        found = origin_of(value)
        if found is None:
            raise self.error(f"{field_name} must be http(s)://host[:port][/path]")
        return found

    def flag(self, field_name: str, default: bool) -> bool:
        value = self._entry.get(field_name, default)
        return value if isinstance(value, bool) else str(value).lower() in _TRUE

    def mapping(self, field_name: str) -> Mapping[Any, Any]:
        """A mapping, or its JSON text."""
        value = self._entry.get(field_name) or {}
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise self.error(f"{field_name} is not JSON") from None
        if not isinstance(value, Mapping):
            raise self.error(f"{field_name} is a mapping")
        return value

    def together(self, *field_names: str) -> bool:
        """Whether these fields, which only make sense together, are there."""
        given = [name for name in field_names if self.optional(name)]
        if given and len(given) < len(field_names):
            raise self.error(f"{' and '.join(field_names)} come together or not at all")
        return bool(given)


def _s3(fields: _Fields, trusted: bool) -> S3Key:
    endpoint_url = fields.url("endpoint_url")
    if endpoint_url.startswith("https:") and not fields.flag("verify_ssl", True):
        raise fields.error("verify_ssl cannot be turned off; give the server's CA as `certificate` (PEM)")
    signed = fields.together("access_key_id", "secret_access_key") and not fields.flag("anonymous", False)
    return S3Key(
        endpoint_url=endpoint_url,
        region=fields.optional("region", DEFAULT_REGION),
        bucket=fields.optional("bucket") or fields.optional("default_bucket"),
        access_key_id=fields.text("access_key_id") if signed else "",
        secret_access_key=fields.text("secret_access_key") if signed else "",
        session_token=fields.optional("session_token") if signed else "",
        certificate=fields.optional("certificate"),
        trusted_prefixes_apply=trusted,
    )


def _gcs(fields: _Fields, trusted: bool) -> GcsKey:
    account = fields.optional("service_account")
    if encoded := fields.optional("base64_service_account"):
        account = _decoded(fields, "base64_service_account", encoded)
    if fields.together("private_key", "client_email"):
        account = json.dumps({name: fields.text(name) for name in ("private_key", "client_email")})
    if account:
        account = _service_account(fields, account, fields.optional("private_key_id"))
    return GcsKey(
        endpoint_url=fields.url("endpoint_url"),
        bucket=fields.optional("bucket"),
        service_account=account,
        certificate=fields.optional("certificate"),
        trusted_prefixes_apply=trusted,
    )


def _service_account(fields: _Fields, text: str, key_id: str) -> str:
    # What else such a file may say, a server to sign for among it, is left out: the key's own endpoint decides.
    try:
        found = json.loads(text)
        kept = {name: found[name] for name in ("private_key", "client_email")}
    except (ValueError, KeyError, TypeError):
        raise fields.error("the service account is not Google's JSON with private_key and client_email") from None
    if not all(isinstance(value, str) and value for value in kept.values()):
        raise fields.error("the service account's private_key and client_email must be text")
    return json.dumps(kept | {"private_key_id": str(found.get("private_key_id", key_id))})


def _azure(fields: _Fields, trusted: bool) -> AzureKey:
    account, endpoint_url = fields.optional("account_name"), fields.url("endpoint_url")
    access_key, sas_token = fields.optional("access_key"), fields.optional("sas_token")
    if connection := fields.optional("connection_string"):
        said = dict(part.split("=", 1) for part in connection.split(";") if "=" in part)
        account = account or said.get("AccountName", "")
        access_key = access_key or said.get("AccountKey", "")
        sas_token = sas_token or said.get("SharedAccessSignature", "")
        endpoint_url = endpoint_url or said.get("BlobEndpoint", "")
        suffix = said.get("EndpointSuffix", "core.windows.net")
        if not endpoint_url and suffix != "core.windows.net":
            endpoint_url = f"{said.get('DefaultEndpointsProtocol', 'https')}://{account}.blob.{suffix}"
        if endpoint_url:
            fields.origin("connection_string's BlobEndpoint", endpoint_url)
    principal = fields.together("client_id", "client_secret", "tenant_id")
    return AzureKey(
        account_name=account,
        container=fields.optional("container"),
        endpoint_url=endpoint_url,
        access_key=access_key,
        sas_token=sas_token.removeprefix("?"),
        client_id=fields.text("client_id") if principal else "",
        client_secret=fields.text("client_secret") if principal else "",
        tenant_id=fields.text("tenant_id") if principal else "",
        authority_host=fields.url("authority_host", AZURE_AUTHORITY),
        certificate=fields.optional("certificate"),
        trusted_prefixes_apply=trusted,
    )


def _http(fields: _Fields, trusted: bool) -> HttpKey:
    headers = fields.mapping("headers")
    if not all(isinstance(value, str) for value in headers.values()):
        raise fields.error("headers is a mapping of header names to text")
    return HttpKey(
        fields.origin("url", fields.text("url")),
        {str(key): value for key, value in headers.items()},
        fields.optional("certificate"),
        trusted_prefixes_apply=trusted,
    )


def _hf(fields: _Fields, trusted: bool) -> HfKey:
    return HfKey(
        endpoint_url=fields.url("endpoint_url", HUGGING_FACE),
        token=fields.optional("token"),
        certificate=fields.optional("certificate"),
        trusted_prefixes_apply=trusted,
    )


def _oci(fields: _Fields, trusted: bool) -> OciKey:
    logins = {_registry(str(host)): _login(fields, login) for host, login in fields.mapping("auths").items()}
    registry = _registry(fields.optional("registry"))
    if fields.together("username", "password"):
        if not registry:
            raise fields.error("field registry must say whose user name and password these are")
        logins[registry] = (fields.text("username"), fields.text("password"))
    plain = (registry,) if registry and fields.flag("insecure", False) else ()
    return OciKey(logins, plain, fields.optional("certificate"), trusted_prefixes_apply=trusted)


def _registry(written: str) -> str:
    # Docker writes its own registry as a URL.
    host = urlsplit(written).netloc if "://" in written else written.partition("/")[0]
    return "docker.io" if host == "index.docker.io" else host.lower()


def _login(fields: _Fields, login: object) -> tuple[str, str]:
    if not isinstance(login, Mapping):
        raise fields.error("auths maps registries to user names and passwords")
    if isinstance(login.get("auth"), str):
        username, _, password = _decoded(fields, "auths", login["auth"]).partition(":")
        return username, password
    return str(login.get("username", "")), str(login.get("password", ""))


def _git(fields: _Fields, trusted: bool) -> GitKey:
    return GitKey(
        fields.origin("url", fields.text("url")),
        fields.optional("username"),
        fields.optional("password"),
        trusted_prefixes_apply=trusted,
    )


def _pvc(fields: _Fields, trusted: bool) -> PvcKey:
    return PvcKey(fields.text("name"), trusted_prefixes_apply=trusted)


_PARSERS = {
    "s3": _s3,
    "gs": _gcs,
    "azure": _azure,
    "http": _http,
    "hf": _hf,
    "oci": _oci,
    "git": _git,
    "pvc": _pvc,
}


# Kubernetes ---------------------------------------------------------------------------------------------------------


def _of_manifest(name: str, manifest: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields of a Secret as Kubernetes prints it."""
    found: dict[str, Any] = {}
    annotations = (manifest.get("metadata") or {}).get("annotations") or {}
    found |= {key: value for key, value in annotations.items() if str(key).startswith(_KSERVE_ANNOTATIONS)}
    for key, value in (manifest.get("data") or {}).items():
        try:
            found[str(key)] = base64.b64decode(str(value), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise BadStorageConfig(f"storage key {name!r}: data of a Secret is base64; {key!r} is not") from None
    return found | {str(key): value for key, value in (manifest.get("stringData") or {}).items()}


def _of_kserve_secret(name: str, fields: Mapping[Any, Any]) -> dict[str, Any]:
    """An entry with a type, of a secret whose fields have KServe's names. What has none of them comes back as it is."""

    def first(*names: str) -> Any:
        return next((fields[each] for each in names if fields.get(each) not in (None, "")), None)

    entry: dict[str, Any] = {}
    if first("AWS_ACCESS_KEY_ID", "awsAccessKeyID") or any(str(key).startswith(_KSERVE_ANNOTATIONS) for key in fields):
        https = str(first("S3_USE_HTTPS", f"{_KSERVE_ANNOTATIONS}usehttps") or "1").lower() in _TRUE
        endpoint = first("AWS_ENDPOINT_URL", "S3_ENDPOINT", f"{_KSERVE_ANNOTATIONS}endpoint")
        if endpoint and "://" not in endpoint:
            endpoint = f"{'https' if https else 'http'}://{endpoint}"
        entry = {
            "type": "s3",
            "access_key_id": first("AWS_ACCESS_KEY_ID", "awsAccessKeyID"),
            "secret_access_key": first("AWS_SECRET_ACCESS_KEY", "awsSecretAccessKey"),
            "session_token": first("AWS_SESSION_TOKEN"),
            "endpoint_url": endpoint,
            "region": first("AWS_DEFAULT_REGION", "AWS_REGION", f"{_KSERVE_ANNOTATIONS}region"),
            "verify_ssl": first("S3_VERIFY_SSL", f"{_KSERVE_ANNOTATIONS}verifyssl"),
            "anonymous": first("awsAnonymousCredential", f"{_KSERVE_ANNOTATIONS}useanoncredential"),
        }
    elif account := first("gcloud-application-credentials.json"):
        entry = {"type": "gs", "service_account": account}
    elif first("AZ_CLIENT_ID", "AZURE_CLIENT_ID"):
        entry = {
            "type": "azure",
            "client_id": first("AZ_CLIENT_ID", "AZURE_CLIENT_ID"),
            "client_secret": first("AZ_CLIENT_SECRET", "AZURE_CLIENT_SECRET"),
            "tenant_id": first("AZ_TENANT_ID", "AZURE_TENANT_ID"),
        }
    elif first("AZURE_STORAGE_ACCESS_KEY"):
        entry = {"type": "azure", "access_key": first("AZURE_STORAGE_ACCESS_KEY")}
    elif first("HF_TOKEN"):
        entry = {"type": "hf", "token": first("HF_TOKEN")}
    elif host := first("https-host"):
        url = host if "://" in host else f"https://{host}"
        entry = {"type": "http", "url": url, "headers": _header_lines(name, first("headers") or "")}
    elif docker := first(".dockerconfigjson"):
        try:
            entry = {"type": "oci", "auths": json.loads(docker)["auths"]}
        except (ValueError, KeyError, TypeError):
            raise BadStorageConfig(f"storage key {name!r}: .dockerconfigjson is not Docker's JSON") from None
    else:
        return dict(fields)
    if "trusted_prefixes_apply" in fields:
        entry["trusted_prefixes_apply"] = fields["trusted_prefixes_apply"]
    return {key: value for key, value in entry.items() if value is not None}


def _header_lines(name: str, text: str) -> dict[str, str]:
    if text.lstrip().startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError:
            raise BadStorageConfig(
                f"storage key {name!r}: headers is neither JSON nor lines of `name: value`"
            ) from None
    pairs = (line.partition(":") for line in text.splitlines() if line.strip())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _decoded(fields: _Fields, field_name: str, encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise fields.error(f"{field_name} is not base64") from None
