"""Every setting of a pod, in one typed class.

A setting has a unit in its name or type, a default, and a reason, which is its help text. It is read once, at start:
from the command line, else from `HEXCOMB_<NAME>` in the environment, else the default. Nothing else in the product
reads the environment. `hexcomb serve --help` is made from this class, so that the two cannot differ.

All limits live here too: whatever can queue, wait, retry or grow has a field below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mesh.batching.settings import BatchSettings
from mesh.box import BoxLimit, this_box
from mesh.pipelines.settings import PIPELINES_DEPTH_MAX
from mesh.tenant_shares import check_parts
from mesh.transport.choosing import Wanted
from placement.errors import InvalidAddress
from placement.store.etcd_options import EtcdOptions

MIB = 1024 * 1024


def _share_of_the_box() -> ByteSize:
    return ByteSize(this_box().capacity_bytes)


def _worker_threads() -> int:
    return this_box().workers


Words = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """The settings of one pod (`hexcomb serve`). Sizes accept `512MiB`, `2GiB`, or bytes."""

    model_config = SettingsConfigDict(env_prefix="HEXCOMB_", frozen=True, extra="forbid")

    # Where it listens -------------------------------------------------------------------------------------------
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on, gRPC and HTTP. Anything but loopback needs --insecure until "
        "authentication is configured.",
    )
    insecure: bool = Field(
        False, description="Allow listening beyond loopback without authentication: whoever reaches the port is admin."
    )
    remote_server_settings: bool = Field(
        False,
        description="Let clients on other machines change what holds for all tenants: Triton's log settings, and the "
        "trace settings of all models. Without it, callers on this machine alone.",
    )
    grpc_port: int = Field(8033, ge=0, le=65535, description="gRPC port (V2, ModelMesh, management); 0 picks one.")
    http_port: int = Field(8008, ge=0, le=65535, description="HTTP port (REST, health, metrics); 0 picks one.")
    transport: Wanted = Field(
        "auto",
        description="What speaks gRPC: `native` (pygrpc-native: HTTP/2 in Rust, several times as many requests per "
        "core) or `grpcio`. `auto`: native for a pod alone on loopback addresses, else grpcio, since native learns "
        "that a message is too large only once it has read it, and refuses channels that name several pods. The log "
        "and `hexcomb pods --pod NAME` say which one serves, and why.",
    )
    tenant_ports: Words = Field(
        (),
        description="TENANT=PORT, comma separated: extra gRPC ports whose callers belong to that tenant, since gRPC "
        "shows no host name.",
    )
    ready_file: Path | None = Field(
        None, description="Write the pod's addresses and pid as JSON to this file once it is ready (for scripts)."
    )

    # Where it keeps things --------------------------------------------------------------------------------------
    data_dir: Path = Field(
        Path("hexcomb-data"), description="Directory of the registry (embedded store) and of the disk tier."
    )
    store: str = Field(
        "embedded",
        description="Where registrations live: `embedded`, an SQLite file in the data directory (one pod), or "
        "etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT]/PREFIX (many pods; etcds:// for TLS).",
    )
    store_connection: Path | None = Field(
        None,
        description="ModelMesh's `etcd_connection` JSON file (endpoints, userid, password, root_prefix, certificates), "
        "in place of --store.",
    )
    store_ca: Path | None = Field(None, description="PEM file of the authority that signed etcd's certificate.")
    store_certificate: Path | None = Field(None, description="PEM file of this pod's certificate for etcd.")
    store_key: Path | None = Field(None, description="PEM file of that certificate's private key.")
    store_password_file: Path | None = Field(
        None, description="File with etcd's password, for a --store whose address names the user only."
    )

    # The pool (with --store etcd://...) -------------------------------------------------------------------------
    pod_name: str = Field(
        "",
        description="Name of this pod in the pool, status and metrics; unique. Empty: host name and pid. A pod that "
        "restarts under its old name takes over from its predecessor.",
    )
    advertise_address: str = Field(
        "",
        description="HOST:PORT where other pods reach this one. Empty: the address it listens on, or this host's own "
        "when it listens on all.",
    )
    peer_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port on which other pods of the pool forward requests in batches, which costs them and this pod a "
        "fraction of a call each. 0: any free one. Where it cannot be reached, they call the gRPC port instead.",
    )
    advertise_peer_address: str = Field(
        "",
        description="HOST:PORT where other pods reach `peer_port`. Empty: the host of the advertised address, and on "
        "the same machine a unix socket.",
    )
    tell_owner: bool = Field(
        True,
        description="Whether an answer that another pod of the pool gave says at which address that pod is, so that "
        "our Python client asks there next time.",
    )
    zone: str = Field("", description="Failure zone of this pod: further copies of a model go to other zones first.")
    labels: Words = Field(
        (), description="Labels of this pod (comma separated), which models may require or prefer: `gpu`, `disk=ssd`."
    )
    type_constraints: Path | None = Field(
        None,
        description='JSON file: {"<format>": {"required": [..], "preferred": [..]}, "_default": {..}}, the labels that '
        "models of a format need (ModelMesh's type constraints).",
    )
    lease_ttl_s: float = Field(
        10.0, ge=1, le=300, description="A pod that is silent for so long has its copies given up by the store."
    )
    probe_interval_s: float = Field(
        0.5, gt=0, description="How often pods ask one another whether they are there; two failures put one out."
    )
    probe_timeout_s: float = Field(0.6, gt=0, description="A probe without an answer for so long has failed.")
    claim_timeout_s: float = Field(
        0.5, gt=0, description="Longest wait for the store before a cold model is loaded without its consent."
    )
    forwards_per_pod_max: int = Field(
        4_000, ge=1, description="Requests forwarded to one pod at a time; beyond it the pod counts as full."
    )
    route_attempts_max: int = Field(
        8, ge=1, le=64, description="Pods that one request is tried on before its last error is the answer."
    )
    drain_grace_s: float = Field(
        60.0,
        ge=0,
        description="On SIGTERM in a pool: seconds for hot models to become servable elsewhere and for clients to "
        "leave, before `stop_grace_s` begins.",
    )
    drain_quiet_s: float = Field(
        1.0, ge=0, description="A draining pod that no client has called for so long has nothing left to wait for."
    )
    drain_recent_s: float = Field(
        300.0, ge=0, description="Models used within so many seconds are handed over by a draining pod; others reload."
    )
    bootstrap_trials: int = Field(
        3,
        ge=0,
        le=100,
        description="Hot models that a new pod of a running pool loads before it is ready, so that a release that "
        "cannot load stops itself. 0: none, for pods that lack other pods' frameworks on purpose.",
    )
    bootstrap_timeout_s: float = Field(
        60.0, gt=0, description="Longest time for those trial loads; what is not loaded then does not count."
    )

    # Capacities -------------------------------------------------------------------------------------------------
    capacity: ByteSize = Field(
        default_factory=_share_of_the_box,
        ge=0,
        description="Bytes of memory for resident models on this pod (the device tier of a CPU pod). Default: 80 % of "
        "the memory that this container may use (cgroup v1 or v2) less 256 MiB for the pod and its frameworks; on a "
        "machine without such a limit 60 % of its memory, since others run there, too.",
    )
    device_capacity: ByteSize | None = Field(
        None, description="Bytes of memory per GPU for resident models. Default: 90 % of what the GPU has."
    )
    host_capacity: ByteSize | None = Field(
        None,
        ge=0,
        description="Bytes of RAM for models that made room on the GPU: they come back without being fetched or loaded "
        "anew, where their framework can do that. Only on a pod with a GPU. Default: half of --capacity, which is then "
        "the other half; 0: none.",
    )
    device_full: Literal["evict", "run_on_cpu"] = Field(
        "evict",
        description="When the GPU has no room for a model: `evict` makes room there; `run_on_cpu` runs it on the CPU "
        "while there is room in --capacity, slower and at once, and makes room on the GPU only after that.",
    )
    device: str = Field(
        "auto",
        description="Where models run: `cpu`; `cuda`, the first GPU; `all` GPUs that this process may use; some of "
        "them, as in `cuda:0,cuda:2`; `auto`, the first GPU if there is one. Each GPU has a capacity of its own.",
    )
    memory_watch_s: float = Field(
        1.0,
        ge=0,
        le=60,
        description="How often the pod looks at its box's memory (limit, working set, page faults, stalls), to hold "
        "less while the kernel takes needed pages back, and to load nothing just before it would kill. 0: never.",
    )
    disk_capacity: ByteSize = Field(
        ByteSize(20 * 1024 * MIB), ge=0, description="Bytes of disk for fetched and prepared artifacts."
    )
    keep_originals: bool = Field(
        False,
        description="Keep a fetched artifact of 1 MiB or more on disk beside the prepared form that is loaded. Without "
        "it a model that comes to need the original (isolated, or another version of its framework) is fetched again.",
    )
    answer_as_fetched: bool = Field(
        True,
        description="Load an ONNX or XGBoost model as it was fetched for its first answers, in free memory, and change "
        "to its prepared form while it serves. Without it the first request waits until the model is prepared.",
    )
    promotion: bool = Field(
        True,
        description="Pack the weights of ONNX models that are used much, in free memory, while they serve: a quarter "
        "to a half less time per run.",
    )
    promotion_horizon_s: float = Field(
        60.0,
        gt=0,
        description="A model is promoted when that saves, within this many seconds at its present rate, four times "
        "what packing takes.",
    )

    tenant_shares: Words = Field(
        (),
        description="TENANT=AMOUNT, comma separated, as in `team-a=25%,team-b=2GiB`: what each tenant keeps of this "
        "pod whatever others want. It may hold more while others need less, and gives that back. Together at most "
        "the capacity. Default: nobody keeps anything.",
    )
    tenant_limits: Words = Field(
        (),
        description="TENANT=AMOUNT, comma separated: the most that each tenant may hold on this pod, however much is "
        "free. Default: all of it.",
    )

    runtimes: Path | None = Field(
        None,
        description="JSON file of servers beside this pod that run models for it (Triton, MLServer, ModelMesh's "
        "runtime adapters): each with its kind, address, formats and capacity. The root README shows one.",
    )

    data_plane: Path | None = Field(
        None,
        description="ModelMesh's data-plane configuration (JSON): which gRPC methods of runtimes clients may call, and "
        "which field of a request names the model. Without it, all that the runtimes name, by the mm-model-id header.",
    )

    payload_processors: Words = Field(
        (),
        description="Who is told of requests and answers (comma separated): http(s)://HOST/PATH?MODEL#METHOD gets each "
        "as ModelMesh's JSON, logger://?MODEL#METHOD is the pod's log. What one does not take in time is dropped. "
        "Requests cost more while there is one.",
    )

    # Loading ----------------------------------------------------------------------------------------------------
    loads_concurrent_max: int = Field(
        2, ge=1, le=64, description="Loads at a time: each takes a core; more only adds peak memory."
    )
    fetches_concurrent_max: int = Field(
        8, ge=1, le=256, description="Fetches at a time: one object-store stream does not fill a network card."
    )
    fetch_size_max: ByteSize = Field(
        ByteSize(10 * 1024 * MIB), description="Largest artifact that is fetched: beyond it the fetch stops."
    )
    fetch_timeout_s: float = Field(
        600.0, gt=0, description="Seconds after which a fetch is given up (a transient failure)."
    )
    load_timeout_s: float = Field(
        90.0, gt=0, description="Seconds after which a load is given up, unless the spec says otherwise."
    )
    residency_min_s: float = Field(
        3.0,
        ge=0,
        description="A loaded model is not evicted before this age, or before ten times what its load took if that is "
        "less, against churn; a waiting request overrides it.",
    )
    residency_override_wait_s: float = Field(
        0.05, ge=0, description="A request that has waited this long may evict models below the minimum residency."
    )
    eviction_policy: Literal["lru", "gdsf", "hazard"] = Field(
        "hazard",
        description="Who leaves when memory is short: `lru`, the longest unused; `gdsf`, by frequency, load time and "
        "bytes; `hazard`, by when each is to be expected again, what its load takes, and bytes.",
    )
    prefetch: bool = Field(
        True,
        description="Bring models that a timer calls back before their next call. Such a load evicts only what is "
        "worth less; what was brought in for nothing is counted. `--no-prefetch`: load on demand only.",
    )
    prefetch_period_min_s: float = Field(
        30.0,
        ge=0,
        description="Shortest period of a timer whose model is brought back: what is called more often should stay.",
    )
    thrash_control: bool = Field(
        True,
        description="While the models in use exceed the capacity, and most loads bring back what was evicted a moment "
        "before: gather the requests for models that are not here and serve each model's together, in turns, so that "
        "loads leave time for serving. `--no-thrash-control`: load at each miss, and say only that it is so.",
    )
    failure_backoff_base_s: float = Field(
        1.0, gt=0, description="Wait after a first transient load failure; doubles with each further one."
    )
    failure_backoff_max_s: float = Field(300.0, gt=0, description="Longest wait between tries of a failing model.")
    pinned_max: ByteSize | None = Field(
        None, description="Bytes that one tenant may pin. Default: half of the capacity."
    )
    uploads_max: ByteSize = Field(
        ByteSize(1024 * MIB),
        description="Bytes on disk of the models that one tenant keeps here by uploading them with a load "
        "(RepositoryModelLoad with files); beyond it RESOURCE_EXHAUSTED. They leave with their last registration. "
        "0: none.",
    )

    # Requests ---------------------------------------------------------------------------------------------------
    message_size_max: ByteSize = Field(
        ByteSize(16 * MIB),
        ge=1024,
        description="Largest request; beyond it RESOURCE_EXHAUSTED, or 413. (Answers may have up to 2 GiB.)",
    )
    pipeline_depth_max: int = Field(
        PIPELINES_DEPTH_MAX,
        ge=1,
        le=8,
        description="Pipelines that may be in one another, the one that is asked among them.",
    )
    pipeline_steps_max: int = Field(
        128, ge=1, description="Steps that one request to a pipeline may take, those of pipelines within it included."
    )
    pipeline_bytes_max: ByteSize = Field(
        ByteSize(256 * MIB),
        ge=1024,
        description="What the answers of one request's steps may take together: those of an ensemble are in memory at "
        "a time.",
    )
    calls_concurrent_max: int = Field(
        10_000,
        ge=1,
        description="Calls in the pod at a time, over gRPC and over HTTP each; further ones are answered "
        "RESOURCE_EXHAUSTED, or 429.",
    )
    bytes_in_flight_max: ByteSize = Field(
        ByteSize(1024 * MIB),
        description="Bytes of all requests in the pod at a time, over gRPC and over HTTP each; further ones are "
        "answered RESOURCE_EXHAUSTED, or 429. Decoded, a request may take several times its bytes.",
    )
    waiters_per_model_max: int = Field(
        2_000, ge=1, description="Requests that may wait for one cold model; further ones are shed with a retry hint."
    )
    waiters_max: int = Field(8_000, ge=1, description="Requests that may wait for loads in total.")
    wait_max_s: float = Field(
        60.0, gt=0, description="Longest wait for a load when the client sent no deadline of its own."
    )
    infer_threads: int = Field(
        default_factory=_worker_threads,
        ge=1,
        le=256,
        description="Worker threads that run models. Default: the CPUs that this container may use (quota and CPU "
        "set), rounded up, at least 2.",
    )
    isolated_threads: int = Field(
        64,
        ge=1,
        le=4096,
        description="Worker threads that wait for models in processes of their own: at most one per such copy.",
    )
    model_threads: int = Field(
        1,
        ge=1,
        le=64,
        description="Threads that one model run may use inside its framework. More than the CPUs that this container "
        "may use make each run slower; the pod says so at start.",
    )
    runs_per_model_max: int | None = Field(
        None,
        ge=1,
        description="Runs of one model at a time, on worker threads. Default: as many as there are. A model in a "
        "process of its own, and a GPU, have one at a time in any case.",
    )
    batching: bool = Field(
        True,
        description="While a model runs, gather what arrives for it, and run that together next: nobody waits for "
        "company. Only models whose rows prove not to influence one another, up to the size that pays. "
        "`--no-batching`: one request, one run.",
    )
    batch_rows_max: int = Field(
        64, ge=1, le=65_536, description="Rows of several requests in one run, at most; a spec may say less."
    )
    batch_delay_s: float = Field(
        0.0,
        ge=0,
        le=10,
        description="How long a request that could run may be kept for others to run with, unless its spec says. "
        "0: not at all. Models whose run is shorter than a hand-over to a thread (60 µs) never wait.",
    )
    run_timeout_s: float = Field(
        60.0, gt=0, description="Longest run of a model in an isolated process; then the process is replaced."
    )
    stop_grace_s: float = Field(
        20.0, ge=0, description="On SIGTERM: seconds for running requests to finish; new ones are refused."
    )

    # Trust ------------------------------------------------------------------------------------------------------
    trusted_prefixes: Words = Field(
        (),
        description="URI prefixes (comma separated) whose artifacts may run code when they load: pickle, joblib, "
        ".pt2, TorchScript, Python models. Empty: none.",
    )
    file_prefixes: Words = Field(
        (),
        description="Directories (comma separated) from which file:// artifacts may be read. Empty: any on "
        "loopback, none otherwise.",
    )
    package_index: SecretStr | None = Field(
        None,
        description="URL of an index (as https://pypi.org/simple) from which Python models of trusted prefixes get the "
        "packages that their requirements.txt asks for. None, and no package_links: they get none.",
    )
    package_links: Words = Field(
        (), description="Directories or pages (comma separated) with wheels, for the same, beside or without an index."
    )
    packages_size_max: ByteSize = Field(
        ByteSize(1024 * MIB),
        description="Most bytes that one model's packages may take on the disk, where they count with the artifacts. "
        "So much is kept free while they are installed.",
    )
    http_hosts: Words = Field(
        (),
        description="Hosts (comma separated) that http(s)://, oci:// and git+https:// artifacts may come from, and to "
        "which they, and hubs, may redirect. Empty: any but link-local.",
    )
    pvc_root: Path | None = Field(
        None, description="Directory below which claims are mounted, each under its name, for pvc:// URIs."
    )
    storage_config: Path | None = Field(
        None, description="JSON or YAML file, or directory of files, with the storage keys (endpoints, credentials)."
    )
    allow_unjailed: bool = Field(
        False,
        description="Run untrusted Python models even where the kernel grants no jail (no network, no files).",
    )
    isolated_memory_max: ByteSize = Field(
        ByteSize(2 * 1024 * MIB), description="Memory limit of one isolated model process."
    )

    # Seeing -----------------------------------------------------------------------------------------------------
    metrics_per_model: bool = Field(
        False, description="Add the model's name to metric labels: thousands of series on a dense pod."
    )
    access_log: Path | None = Field(
        None, description="CSV file of the requests that were answered, for `hexcomb plan`: time, model, hit or miss."
    )
    access_log_max: ByteSize = Field(
        ByteSize(256 * MIB),
        ge=1024,
        description="At this size the access log becomes NAME.1, and the one before it goes. A request is some 60 B.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line shown.")

    @field_validator("package_index")
    @classmethod
    def _is_an_index(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("http://", "https://", "file://")):
            raise ValueError("it must be a URL, as https://pypi.org/simple; a directory of wheels is for package_links")
        return value

    @field_validator(
        "labels",
        "tenant_ports",
        "tenant_shares",
        "tenant_limits",
        "trusted_prefixes",
        "file_prefixes",
        "http_hosts",
        "package_links",
        "payload_processors",
        mode="before",
    )
    @classmethod
    def _split_words(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        return value

    @field_validator("tenant_ports")
    @classmethod
    def _check_tenant_ports(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            tenant, _, port = entry.partition("=")
            if not tenant or not port.isdigit() or not 0 <= int(port) <= 65535:
                raise ValueError(f"{entry!r} is not TENANT=PORT")
        return value

    @field_validator("tenant_shares", "tenant_limits")
    @classmethod
    def _check_tenant_parts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_parts(value)
        return value

    @field_validator("device")
    @classmethod
    def _check_device(cls, value: str) -> str:
        named = value.split(",")
        gpus = all(name.startswith("cuda:") and name[5:].isdecimal() for name in named)
        gpus = gpus and len({int(name[5:]) for name in named}) == len(named)  # each has its bytes once
        if value not in ("auto", "cpu", "cuda", "all") and not gpus:
            raise ValueError(f"{value[:80]!r} is none of 'auto', 'cpu', 'cuda', 'all', or GPUs such as 'cuda:0,cuda:2'")
        return value

    @field_validator("store")
    @classmethod
    def _check_store(cls, value: str) -> str:
        if value != "embedded":
            try:
                EtcdOptions.from_url(value)
            except InvalidAddress as error:
                raise ValueError(f"{error}; or `embedded` for one pod") from None
        return value

    @field_validator("advertise_address", "advertise_peer_address")
    @classmethod
    def _check_advertise_address(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value and (not host or not port.isdecimal() or not 0 < int(port) <= 65535):
            raise ValueError(f"{value[:80]!r} is not HOST:PORT")
        return value

    @model_validator(mode="after")
    def _check_exposure(self) -> Settings:
        if not self.is_loopback and not self.insecure:
            raise ValueError(
                f"host {self.host!r} is not loopback and no authentication is configured: anyone who reaches the "
                "port could register models. Listen on 127.0.0.1, or say --insecure if the network is closed"
            )
        return self

    def origin(self, name: str) -> str:
        """Where the value of a setting comes from, for people."""
        if name in self.model_fields_set:
            return f"set by --{name.replace('_', '-')} or HEXCOMB_{name.upper()}"
        return origin_of_default(name)

    @property
    def batch_settings(self) -> BatchSettings:
        """What this pod allows of running requests together."""
        return BatchSettings(self.batching, self.batch_rows_max, self.batch_delay_s)

    @property
    def is_pooled(self) -> bool:
        """Whether this pod shares its models with others."""
        return self.store != "embedded" or self.store_connection is not None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the pod."""
        return self.host in {"127.0.0.1", "::1", "localhost"} or self.host.startswith("127.")

    @property
    def tenant_addresses(self) -> dict[str, int]:
        """Tenant -> extra gRPC port."""
        return {tenant: int(port) for tenant, _, port in (entry.partition("=") for entry in self.tenant_ports)}


def origin_of_default(name: str) -> str:
    """What a default was made from, where it depends on the box; else that it is the default."""
    box = this_box()
    return {"capacity": box.capacity_why, "infer_threads": box.workers_why}.get(name, "the default")


def box_limits(settings: Settings) -> tuple[BoxLimit, ...]:
    """What this pod takes of its box."""
    names = ("capacity", "device_capacity", "disk_capacity", "infer_threads", "model_threads")
    values = {name: getattr(settings, name) for name in names}
    return tuple(
        BoxLimit(name, float(value), settings.origin(name)) for name, value in values.items() if value is not None
    )
