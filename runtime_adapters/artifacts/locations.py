"""What a storage URI means: which scheme, whose server, which object.

Trust is decided on names, so a name must have one spelling. A URI is therefore parsed strictly and once: everything
that a server or an HTTP library might read as another path (`..`, `%2e`, `%2f`, backslashes, control characters,
credentials before the host) is refused rather than repaired. Then "lies under this prefix" is a comparison of path
segments: `s3://b/tr` covers `s3://b/tr/x`, never `s3://b/trusted-not`.

* `s3://bucket/key`, `gs://bucket/key` - the rest after the bucket is the key, literally: nothing in it is decoded.
* `az://container[@account]/key`, `abfs(s)://container@account.dfs.core.windows.net/key`,
  `https://account.blob.core.windows.net/container/key` (without a query) - Azure's containers, likewise.
* `http(s)://host[:port]/path[?query]` - the query is kept for the request (signed URLs) and shown to nobody.
* `file:///path` (percent-decoded) and bare absolute paths (literal).
* `pvc://claim/path` - below the operator's directory of mounted claims.
* `hf://owner/model[:revision][/path]`, `oci://registry/repository[:tag][@sha256:...]`,
  `git+https://host/repository[@revision][#path]` - stores with versions. A trusted prefix without a version covers all.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from runtime_adapters.artifacts.errors import BadLocation

_URI_LENGTH_MAX = 4096
_SHOWN_LENGTH_MAX = 200
_DEFAULT_PORTS = {"http": 80, "https": 443}
_KINDS = {"https": "http", "git+https": "git", "git+http": "git"}
_BUCKETS = {"s3": "s3", "gs": "gs", "gcs": "gs"}
_AZURE = ("az", "azure", "abfs", "abfss")
_AZURE_HOSTS = (".dfs.core.windows.net", ".blob.core.windows.net")
_EXAMPLES = "file:///path, https://host/path or s3://bucket/key"
SCHEMES = "file, http, https, s3, gs, az, abfs, pvc, hf, oci and git+https"
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ARCHIVES = ((".zip", "zip"), (".tar", "tar"), (".tar.gz", "tar.gz"), (".tgz", "tar.gz"))
_SUFFIX = re.compile(r"\.[a-z0-9_]{1,16}")
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_CLAIM = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_HUB_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,254}")
_REPOSITORY = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Location:
    """A URI, understood. `authority` is the bucket, `container@account`, the claim, the owner or `host[:port]`; `path`
    has no leading slash. In a store with versions, `path` is the repository, and `inner` the place within it.

    `uri` is the normal form, query included: never show it, show `shown`.
    """

    scheme: str
    authority: str
    path: str
    uri: str = field(repr=False)
    query: str = field(default="", repr=False)
    revision: str = ""
    inner: str = ""

    @property
    def kind(self) -> str:
        """Which kind of storage key reads it."""
        return _KINDS.get(self.scheme, self.scheme)

    @property
    def shown(self) -> str:
        """The URI for logs and errors: without its query, and not longer than a line."""
        text = self.uri.partition("?")[0] + "?..." if self.query else self.uri
        return text if len(text) <= _SHOWN_LENGTH_MAX else text[:_SHOWN_LENGTH_MAX] + "..."

    @property
    def segments(self) -> tuple[str, ...]:
        """The path's segments, empty ones left out; then the version, and the segments within it."""
        of_path = tuple(segment for segment in self.path.split("/") if segment)
        if not self.revision and not self.inner:
            return of_path
        return (*of_path, f"@{self.revision}", *(segment for segment in self.inner.split("/") if segment))

    @property
    def name(self) -> str:
        """What a file is called there, if the location is one."""
        return self.inner if self.kind in ("hf", "oci", "git") else self.path

    @property
    def file_path(self) -> Path:
        """Where a `file` location lies on this machine."""
        return Path("/" + self.path)

    @property
    def archive_kind(self) -> str | None:
        """`zip`, `tar` or `tar.gz` if the name says so. Formats that are zip files inside keep their own names."""
        lowered = self.name.lower()
        return next((kind for suffix, kind in _ARCHIVES if lowered.endswith(suffix)), None)

    @property
    def suffix(self) -> str:
        """The name's last suffix if it is a plain one (`.onnx`), else nothing."""
        suffix = Path(self.name).suffix.lower()
        return suffix if _SUFFIX.fullmatch(suffix) else ""


def parse_location(uri: str) -> Location:
    """Understand a URI, or raise BadLocation saying what is wrong with it."""
    if not uri:
        raise BadLocation(f"uri is empty; give {_EXAMPLES}")
    if len(uri) > _URI_LENGTH_MAX:
        raise BadLocation(f"uri has {len(uri)} characters; {_URI_LENGTH_MAX} are allowed")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if uri.startswith("/"):
            return _file_location(uri, uri)
        raise BadLocation(f"uri {_shown(uri)}: neither a URI nor an absolute path; give {_EXAMPLES}")
    match scheme.lower():
        case "file":
            return _parse_file(uri, rest)
        case "http" | "https":
            found = _parse_http(uri)
            return _of_blob_host(uri, found) or found
        case "s3" | "gs" | "gcs" as bucket_scheme:
            return _parse_bucket(_BUCKETS[bucket_scheme], uri, rest)
        case lowered if lowered in _AZURE:
            return _parse_azure(uri, rest)
        case "pvc":
            return _parse_pvc(uri, rest)
        case "hf":
            return _parse_hf(uri, rest)
        case "oci":
            return _parse_oci(uri, rest)
        case "git+https" | "git+http":
            return _parse_git(uri)
        case _:
            raise BadLocation(f"uri {_shown(uri)}: scheme {scheme[:20]!r} is not served; schemes are {SCHEMES}")


def _parse_file(uri: str, rest: str) -> Location:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise BadLocation(f"uri {_shown(uri)}: a file URI has three slashes, file:///path, and names no host")
    return _file_location(uri, "/" + unquote(path))


def _file_location(uri: str, path: str) -> Location:
    if re.search(r"[\x00-\x1f\x7f]", path):
        raise BadLocation(f"uri {_shown(uri)}: the path holds a control character")
    segments = [segment for segment in path.split("/") if segment]
    _refuse_dots(uri, segments)
    plain = "/".join(segments)
    return Location("file", "", plain, uri=f"file:///{plain}")


def _parse_http(uri: str) -> Location:
    if _FORBIDDEN.search(uri):
        raise BadLocation(f"uri {_shown(uri)}: spaces, control characters and backslashes must be percent-encoded")
    try:
        parts = urlsplit(uri)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise BadLocation(f"uri {_shown(uri)}: {error}") from None
    if "@" in parts.netloc:
        raise BadLocation("uri holds a user name or password before its host; put credentials in a storage key instead")
    bracketed = parts.netloc.startswith("[")
    if bracketed:
        try:
            host = f"[{ipaddress.IPv6Address(host)}]"
        except ValueError:
            raise BadLocation(f"uri {_shown(uri)}: {host!r} is not an IPv6 address") from None
    elif not _HOST.fullmatch(host):
        raise BadLocation(f"uri {_shown(uri)}: {host!r} is not a host name; write other scripts in their xn-- form")
    if parts.fragment or uri.endswith("#"):
        raise BadLocation(f"uri {_shown(uri)}: a fragment (#...) names no file; leave it out")
    segments = parts.path.split("/")[1:]
    if _PERCENT.search(parts.path):
        raise BadLocation(f"uri {_shown(uri)}: a % must be followed by two hex digits")
    for segment in segments:
        decoded = unquote(segment)
        if "/" in decoded or "\\" in decoded or _FORBIDDEN.search(decoded.replace(" ", "")):
            raise BadLocation(f"uri {_shown(uri)}: the path hides a slash, backslash or control character")
    _refuse_dots(uri, [unquote(segment) for segment in segments])
    authority = host if port is None or port == _DEFAULT_PORTS[parts.scheme] else f"{host}:{port}"
    path = "/".join(segments)
    normal = f"{parts.scheme}://{authority}/{path}" + (f"?{parts.query}" if parts.query else "")
    return Location(parts.scheme, authority, path, uri=normal, query=parts.query)


def _parse_bucket(scheme: str, uri: str, rest: str) -> Location:
    bucket, _, key = rest.partition("/")
    if bucket and not _BUCKET.fullmatch(bucket):
        raise BadLocation(f"uri {_shown(uri)}: {bucket[:80]!r} is not a bucket name")
    _check_key(uri, key)
    return Location(scheme, bucket, key, uri=f"{scheme}://{bucket}/{key}")


def _parse_azure(uri: str, rest: str) -> Location:
    authority, _, key = rest.partition("/")
    container, at, account = authority.partition("@")
    for host in _AZURE_HOSTS:
        account = account.removesuffix(host)
    return _azure_location(uri, container, account, key, has_account=bool(at))


def _azure_location(uri: str, container: str, account: str, key: str, has_account: bool) -> Location:
    if has_account and not _ACCOUNT.fullmatch(account):
        raise BadLocation(
            f"uri {_shown(uri)}: {account[:80]!r} is not an account of Azure's public cloud; for another one name the "
            "container alone, and the account and its endpoint_url in the storage key"
        )
    if container and not _BUCKET.fullmatch(container):
        raise BadLocation(f"uri {_shown(uri)}: {container[:80]!r} is not a container name")
    _check_key(uri, key)
    authority = f"{container}@{account}" if account else container
    return Location("azure", authority, key, uri=f"azure://{authority}/{key}")


def _of_blob_host(uri: str, location: Location) -> Location | None:
    """Azure's own URL of a blob, without a signature in it, is a key of a container."""
    account, dot, host = location.authority.partition(".")
    if f"{dot}{host}" not in _AZURE_HOSTS or location.scheme != "https" or location.query:
        return None
    container, _, key = location.path.partition("/")
    return _azure_location(uri, container, account, unquote(key), has_account=True)


def _check_key(uri: str, key: str) -> None:
    if re.search(r"[\x00-\x1f\x7f]", key):
        raise BadLocation(f"uri {_shown(uri)}: the key holds a control character")
    segments = key.removesuffix("/").split("/") if key else []
    if "" in segments:
        raise BadLocation(f"uri {_shown(uri)}: the key has two slashes in a row, which is not supported")
    _refuse_dots(uri, segments)


def _parse_pvc(uri: str, rest: str) -> Location:
    claim, _, path = rest.partition("/")
    if not _CLAIM.fullmatch(claim):
        raise BadLocation(f"uri {_shown(uri)}: {claim[:80]!r} is not the name of a claim; write pvc://claim/path")
    plain = path.strip("/")
    _check_key(uri, plain)
    return Location("pvc", claim, plain, uri=f"pvc://{claim}/{plain}")


def _parse_hf(uri: str, rest: str) -> Location:
    # The revision stands behind the model's name, which comes first or second.
    parts = rest.rstrip("/").split("/")
    named = 1 if ":" in parts[0] else 2
    owner, model, revision = parts[0], "", ""
    if named == 1:
        owner, _, revision = owner.partition(":")
    elif len(parts) > 1:
        model, _, revision = parts[1].partition(":")
    inner = "/".join(parts[named:])
    if not all(_HUB_NAME.fullmatch(name) for name in (owner, model or owner)):
        raise BadLocation(f"uri {_shown(uri)}: write hf://owner/model, hf://owner/model:revision or .../path after it")
    if revision and not _TAG.fullmatch(revision):
        raise BadLocation(f"uri {_shown(uri)}: {revision[:80]!r} is not a branch, tag or commit without slashes")
    _check_key(uri, inner)
    uri = f"hf://{owner}" + (f"/{model}" if model else "") + (f":{revision}" if revision else "")
    uri += f"/{inner}" if inner else ""
    return Location("hf", owner, model, uri=uri, revision=revision, inner=inner)


def _parse_oci(uri: str, rest: str) -> Location:
    registry, _, named = rest.partition("/")
    named, at, digest = named.partition("@")
    repository, _, tag = named.partition(":")
    host = registry.partition(":")[0]
    if "." not in host and host != "localhost" and ":" not in registry:
        raise BadLocation(f"uri {_shown(uri)}: {registry[:80]!r} is no registry; write oci://registry/repository:tag")
    if not _HOST.fullmatch(host) or not re.fullmatch(r"(:[0-9]{1,5})?", registry[len(host) :]):
        raise BadLocation(f"uri {_shown(uri)}: {registry[:80]!r} is not the host[:port] of a registry")
    if repository and not _REPOSITORY.fullmatch(repository):
        raise BadLocation(f"uri {_shown(uri)}: {repository[:80]!r} is not the name of a repository")
    if (tag and not _TAG.fullmatch(tag)) or (at and not _DIGEST.fullmatch(digest)):
        raise BadLocation(f"uri {_shown(uri)}: an image is named by :tag, or by @sha256: and 64 lower-case hex digits")
    version = f"@{digest}" if digest else f":{tag}" if tag else ""
    uri = f"oci://{registry}/{repository}{version}"
    return Location("oci", registry, repository, uri=uri, revision=digest or tag)


def _parse_git(uri: str) -> Location:
    plain, _, inner = uri.partition("#")
    # An @ before the path is refused with the credentials that it would follow.
    before, at, revision = (
        plain.rpartition("@") if "@" in plain.partition("://")[2].partition("/")[2] else (plain, "", "")
    )
    of_http = _parse_http(before.removeprefix("git+"))
    if of_http.query:
        raise BadLocation(f"uri {of_http.shown!r}: a repository has no query; put credentials in a storage key")
    if at and not _REVISION.fullmatch(revision):
        raise BadLocation(f"uri {_shown(uri)}: {revision[:80]!r} is not a branch, tag or commit")
    _refuse_dots(uri, revision.split("/"))
    _check_key(uri, inner)
    scheme, path, inner = f"git+{of_http.scheme}", of_http.path.rstrip("/"), inner.rstrip("/")
    uri = (
        f"{scheme}://{of_http.authority}/{path}" + (f"@{revision}" if revision else "") + (f"#{inner}" if inner else "")
    )
    return Location(scheme, of_http.authority, path, uri=uri, revision=revision, inner=inner)


def _refuse_dots(uri: str, segments: list[str]) -> None:
    if any(segment in (".", "..") for segment in segments):
        raise BadLocation(f"uri {_shown(uri)}: the path holds `.` or `..`; write the path that is meant")


def _shown(uri: str) -> str:
    visible = uri.partition("?")[0]
    if "@" in visible.partition("://")[2].partition("/")[0]:
        visible = visible.partition("://")[0] + "://..."
    return ascii(visible if len(visible) <= _SHOWN_LENGTH_MAX else visible[:_SHOWN_LENGTH_MAX] + "...")
