from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    NOT_LOADED: _ClassVar[ModelState]
    LOADING: _ClassVar[ModelState]
    LOADED: _ClassVar[ModelState]
    UNLOADING: _ClassVar[ModelState]
    FAILED: _ClassVar[ModelState]
MODEL_STATE_UNSPECIFIED: ModelState
NOT_LOADED: ModelState
LOADING: ModelState
LOADED: ModelState
UNLOADING: ModelState
FAILED: ModelState

class PredictRequest(_message.Message):
    __slots__ = ("name", "body")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    name: str
    body: bytes
    def __init__(self, name: _Optional[str] = ..., body: _Optional[bytes] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("is_pipeline", "body")
    IS_PIPELINE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    is_pipeline: bool
    body: bytes
    def __init__(self, is_pipeline: bool = ..., body: _Optional[bytes] = ...) -> None: ...

class StreamPart(_message.Message):
    __slots__ = ("responses", "ended", "pod", "stream")
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedScalarFieldContainer[bytes]
    ended: bool
    pod: str
    stream: int
    def __init__(self, responses: _Optional[_Iterable[bytes]] = ..., ended: bool = ..., pod: _Optional[str] = ..., stream: _Optional[int] = ...) -> None: ...

class NextPartRequest(_message.Message):
    __slots__ = ("stream", "cancel")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    stream: int
    cancel: bool
    def __init__(self, stream: _Optional[int] = ..., cancel: bool = ...) -> None: ...

class ModelSpec(_message.Message):
    __slots__ = ("format", "uri", "storage_key", "capacity_hint_bytes", "labels", "priority", "pinned", "copies_min", "copies_max", "ttl_s", "checksum", "isolation", "parameters", "load_timeout_s", "batch_rows_max", "batch_delay_s")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    STORAGE_KEY_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_HINT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    COPIES_MIN_FIELD_NUMBER: _ClassVar[int]
    COPIES_MAX_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    LOAD_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_MAX_FIELD_NUMBER: _ClassVar[int]
    BATCH_DELAY_S_FIELD_NUMBER: _ClassVar[int]
    format: str
    uri: str
    storage_key: str
    capacity_hint_bytes: int
    labels: _containers.ScalarMap[str, str]
    priority: int
    pinned: bool
    copies_min: int
    copies_max: int
    ttl_s: float
    checksum: str
    isolation: str
    parameters: _containers.ScalarMap[str, str]
    load_timeout_s: float
    batch_rows_max: int
    batch_delay_s: float
    def __init__(self, format: _Optional[str] = ..., uri: _Optional[str] = ..., storage_key: _Optional[str] = ..., capacity_hint_bytes: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., priority: _Optional[int] = ..., pinned: bool = ..., copies_min: _Optional[int] = ..., copies_max: _Optional[int] = ..., ttl_s: _Optional[float] = ..., checksum: _Optional[str] = ..., isolation: _Optional[str] = ..., parameters: _Optional[_Mapping[str, str]] = ..., load_timeout_s: _Optional[float] = ..., batch_rows_max: _Optional[int] = ..., batch_delay_s: _Optional[float] = ...) -> None: ...

class Registration(_message.Message):
    __slots__ = ("id", "spec", "if_generation", "load_now")
    ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    IF_GENERATION_FIELD_NUMBER: _ClassVar[int]
    LOAD_NOW_FIELD_NUMBER: _ClassVar[int]
    id: str
    spec: ModelSpec
    if_generation: int
    load_now: bool
    def __init__(self, id: _Optional[str] = ..., spec: _Optional[_Union[ModelSpec, _Mapping]] = ..., if_generation: _Optional[int] = ..., load_now: bool = ...) -> None: ...

class RegisterModelsRequest(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Registration]
    def __init__(self, entries: _Optional[_Iterable[_Union[Registration, _Mapping]]] = ...) -> None: ...

class RegistrationResult(_message.Message):
    __slots__ = ("id", "outcome", "generation", "status_code", "message")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REFUSED: _ClassVar[RegistrationResult.Outcome]
        CREATED: _ClassVar[RegistrationResult.Outcome]
        UNCHANGED: _ClassVar[RegistrationResult.Outcome]
        UPDATED: _ClassVar[RegistrationResult.Outcome]
    REFUSED: RegistrationResult.Outcome
    CREATED: RegistrationResult.Outcome
    UNCHANGED: RegistrationResult.Outcome
    UPDATED: RegistrationResult.Outcome
    ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STATUS_CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    id: str
    outcome: RegistrationResult.Outcome
    generation: int
    status_code: int
    message: str
    def __init__(self, id: _Optional[str] = ..., outcome: _Optional[_Union[RegistrationResult.Outcome, str]] = ..., generation: _Optional[int] = ..., status_code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class RegisterModelsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RegistrationResult]
    def __init__(self, results: _Optional[_Iterable[_Union[RegistrationResult, _Mapping]]] = ...) -> None: ...

class UnregisterModelsRequest(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class UnregistrationResult(_message.Message):
    __slots__ = ("id", "existed", "status_code", "message")
    ID_FIELD_NUMBER: _ClassVar[int]
    EXISTED_FIELD_NUMBER: _ClassVar[int]
    STATUS_CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    id: str
    existed: bool
    status_code: int
    message: str
    def __init__(self, id: _Optional[str] = ..., existed: bool = ..., status_code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class UnregisterModelsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[UnregistrationResult]
    def __init__(self, results: _Optional[_Iterable[_Union[UnregistrationResult, _Mapping]]] = ...) -> None: ...

class CopyDescription(_message.Message):
    __slots__ = ("pod", "state", "device", "host_bytes", "mapped_bytes", "device_bytes", "measured", "since_ms", "last_used_ms", "requests_in_flight", "load_s", "generation", "form", "batching")
    POD_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_MS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    BATCHING_FIELD_NUMBER: _ClassVar[int]
    pod: str
    state: ModelState
    device: str
    host_bytes: int
    mapped_bytes: int
    device_bytes: int
    measured: bool
    since_ms: int
    last_used_ms: int
    requests_in_flight: int
    load_s: float
    generation: int
    form: str
    batching: str
    def __init__(self, pod: _Optional[str] = ..., state: _Optional[_Union[ModelState, str]] = ..., device: _Optional[str] = ..., host_bytes: _Optional[int] = ..., mapped_bytes: _Optional[int] = ..., device_bytes: _Optional[int] = ..., measured: bool = ..., since_ms: _Optional[int] = ..., last_used_ms: _Optional[int] = ..., requests_in_flight: _Optional[int] = ..., load_s: _Optional[float] = ..., generation: _Optional[int] = ..., form: _Optional[str] = ..., batching: _Optional[str] = ...) -> None: ...

class FailureDescription(_message.Message):
    __slots__ = ("message", "permanent", "failed_at_ms", "retry_at_ms", "attempts", "pod")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PERMANENT_FIELD_NUMBER: _ClassVar[int]
    FAILED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AT_MS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    message: str
    permanent: bool
    failed_at_ms: int
    retry_at_ms: int
    attempts: int
    pod: str
    def __init__(self, message: _Optional[str] = ..., permanent: bool = ..., failed_at_ms: _Optional[int] = ..., retry_at_ms: _Optional[int] = ..., attempts: _Optional[int] = ..., pod: _Optional[str] = ...) -> None: ...

class ModelDescription(_message.Message):
    __slots__ = ("id", "spec", "generation", "registered_at_ms", "state", "copies", "failure", "aliases", "tenant", "format", "failures", "suspicion")
    ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    SUSPICION_FIELD_NUMBER: _ClassVar[int]
    id: str
    spec: ModelSpec
    generation: int
    registered_at_ms: int
    state: ModelState
    copies: _containers.RepeatedCompositeFieldContainer[CopyDescription]
    failure: FailureDescription
    aliases: _containers.RepeatedScalarFieldContainer[str]
    tenant: str
    format: str
    failures: _containers.RepeatedCompositeFieldContainer[FailureDescription]
    suspicion: str
    def __init__(self, id: _Optional[str] = ..., spec: _Optional[_Union[ModelSpec, _Mapping]] = ..., generation: _Optional[int] = ..., registered_at_ms: _Optional[int] = ..., state: _Optional[_Union[ModelState, str]] = ..., copies: _Optional[_Iterable[_Union[CopyDescription, _Mapping]]] = ..., failure: _Optional[_Union[FailureDescription, _Mapping]] = ..., aliases: _Optional[_Iterable[str]] = ..., tenant: _Optional[str] = ..., format: _Optional[str] = ..., failures: _Optional[_Iterable[_Union[FailureDescription, _Mapping]]] = ..., suspicion: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "id_prefix", "state", "labels", "format")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ID_PREFIX_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    id_prefix: str
    state: ModelState
    labels: _containers.ScalarMap[str, str]
    format: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., id_prefix: _Optional[str] = ..., state: _Optional[_Union[ModelState, str]] = ..., labels: _Optional[_Mapping[str, str]] = ..., format: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelDescription]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[ModelDescription, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DescribeModelRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class SetPinnedRequest(_message.Message):
    __slots__ = ("id", "pinned")
    ID_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    id: str
    pinned: bool
    def __init__(self, id: _Optional[str] = ..., pinned: bool = ...) -> None: ...

class PodStatusRequest(_message.Message):
    __slots__ = ("pod",)
    POD_FIELD_NUMBER: _ClassVar[int]
    pod: str
    def __init__(self, pod: _Optional[str] = ...) -> None: ...

class TierStatus(_message.Message):
    __slots__ = ("tier", "device", "capacity_bytes", "resident_bytes", "reserved_bytes", "unloading_bytes", "saved_bytes", "dropped_bytes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNLOADING_BYTES_FIELD_NUMBER: _ClassVar[int]
    SAVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    tier: str
    device: str
    capacity_bytes: int
    resident_bytes: int
    reserved_bytes: int
    unloading_bytes: int
    saved_bytes: int
    dropped_bytes: int
    def __init__(self, tier: _Optional[str] = ..., device: _Optional[str] = ..., capacity_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., reserved_bytes: _Optional[int] = ..., unloading_bytes: _Optional[int] = ..., saved_bytes: _Optional[int] = ..., dropped_bytes: _Optional[int] = ...) -> None: ...

class TenantStatus(_message.Message):
    __slots__ = ("tenant", "tier", "device", "held_bytes", "guarantee_bytes", "limit_bytes")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    GUARANTEE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    tier: str
    device: str
    held_bytes: int
    guarantee_bytes: int
    limit_bytes: int
    def __init__(self, tenant: _Optional[str] = ..., tier: _Optional[str] = ..., device: _Optional[str] = ..., held_bytes: _Optional[int] = ..., guarantee_bytes: _Optional[int] = ..., limit_bytes: _Optional[int] = ...) -> None: ...

class RuntimeStatus(_message.Message):
    __slots__ = ("format", "version", "available", "message")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    format: str
    version: str
    available: bool
    message: str
    def __init__(self, format: _Optional[str] = ..., version: _Optional[str] = ..., available: bool = ..., message: _Optional[str] = ...) -> None: ...

class PodDescription(_message.Message):
    __slots__ = ("pod", "version", "addresses", "started_at_ms", "ready", "draining", "tiers", "runtimes", "models_registered", "models_resident", "models_loading", "loads_queued", "requests_in_flight", "requests_waiting", "hits", "misses", "loads", "load_failures", "evictions", "eviction_age_s", "rss_bytes", "zone", "labels", "why_unready", "reachable", "leader", "store_away_since_ms", "requests_per_s", "queue_delay_s", "notices", "busy", "why_unreachable", "tenants", "thrashing", "memory_pressure", "box_limits", "eviction_policy", "prefetches", "prefetches_used", "prefetches_wasted", "transport", "models_parked", "parkings")
    POD_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    RUNTIMES_FIELD_NUMBER: _ClassVar[int]
    MODELS_REGISTERED_FIELD_NUMBER: _ClassVar[int]
    MODELS_RESIDENT_FIELD_NUMBER: _ClassVar[int]
    MODELS_LOADING_FIELD_NUMBER: _ClassVar[int]
    LOADS_QUEUED_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_WAITING_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FAILURES_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    EVICTION_AGE_S_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    WHY_UNREADY_FIELD_NUMBER: _ClassVar[int]
    REACHABLE_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    STORE_AWAY_SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DELAY_S_FIELD_NUMBER: _ClassVar[int]
    NOTICES_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    WHY_UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    THRASHING_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PRESSURE_FIELD_NUMBER: _ClassVar[int]
    BOX_LIMITS_FIELD_NUMBER: _ClassVar[int]
    EVICTION_POLICY_FIELD_NUMBER: _ClassVar[int]
    PREFETCHES_FIELD_NUMBER: _ClassVar[int]
    PREFETCHES_USED_FIELD_NUMBER: _ClassVar[int]
    PREFETCHES_WASTED_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    MODELS_PARKED_FIELD_NUMBER: _ClassVar[int]
    PARKINGS_FIELD_NUMBER: _ClassVar[int]
    pod: str
    version: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    started_at_ms: int
    ready: bool
    draining: bool
    tiers: _containers.RepeatedCompositeFieldContainer[TierStatus]
    runtimes: _containers.RepeatedCompositeFieldContainer[RuntimeStatus]
    models_registered: int
    models_resident: int
    models_loading: int
    loads_queued: int
    requests_in_flight: int
    requests_waiting: int
    hits: int
    misses: int
    loads: int
    load_failures: int
    evictions: int
    eviction_age_s: float
    rss_bytes: int
    zone: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    why_unready: str
    reachable: bool
    leader: bool
    store_away_since_ms: int
    requests_per_s: float
    queue_delay_s: float
    notices: _containers.RepeatedScalarFieldContainer[str]
    busy: _containers.RepeatedCompositeFieldContainer[BusyModel]
    why_unreachable: str
    tenants: _containers.RepeatedCompositeFieldContainer[TenantStatus]
    thrashing: str
    memory_pressure: str
    box_limits: _containers.RepeatedCompositeFieldContainer[BoxLimit]
    eviction_policy: str
    prefetches: int
    prefetches_used: int
    prefetches_wasted: int
    transport: str
    models_parked: int
    parkings: int
    def __init__(self, pod: _Optional[str] = ..., version: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., started_at_ms: _Optional[int] = ..., ready: bool = ..., draining: bool = ..., tiers: _Optional[_Iterable[_Union[TierStatus, _Mapping]]] = ..., runtimes: _Optional[_Iterable[_Union[RuntimeStatus, _Mapping]]] = ..., models_registered: _Optional[int] = ..., models_resident: _Optional[int] = ..., models_loading: _Optional[int] = ..., loads_queued: _Optional[int] = ..., requests_in_flight: _Optional[int] = ..., requests_waiting: _Optional[int] = ..., hits: _Optional[int] = ..., misses: _Optional[int] = ..., loads: _Optional[int] = ..., load_failures: _Optional[int] = ..., evictions: _Optional[int] = ..., eviction_age_s: _Optional[float] = ..., rss_bytes: _Optional[int] = ..., zone: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., why_unready: _Optional[str] = ..., reachable: bool = ..., leader: bool = ..., store_away_since_ms: _Optional[int] = ..., requests_per_s: _Optional[float] = ..., queue_delay_s: _Optional[float] = ..., notices: _Optional[_Iterable[str]] = ..., busy: _Optional[_Iterable[_Union[BusyModel, _Mapping]]] = ..., why_unreachable: _Optional[str] = ..., tenants: _Optional[_Iterable[_Union[TenantStatus, _Mapping]]] = ..., thrashing: _Optional[str] = ..., memory_pressure: _Optional[str] = ..., box_limits: _Optional[_Iterable[_Union[BoxLimit, _Mapping]]] = ..., eviction_policy: _Optional[str] = ..., prefetches: _Optional[int] = ..., prefetches_used: _Optional[int] = ..., prefetches_wasted: _Optional[int] = ..., transport: _Optional[str] = ..., models_parked: _Optional[int] = ..., parkings: _Optional[int] = ...) -> None: ...

class BoxLimit(_message.Message):
    __slots__ = ("name", "value", "origin")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    origin: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., origin: _Optional[str] = ...) -> None: ...

class BusyModel(_message.Message):
    __slots__ = ("tenant", "id", "requests_per_s", "requests_in_flight", "queue_delay_s", "run_s", "concurrency")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DELAY_S_FIELD_NUMBER: _ClassVar[int]
    RUN_S_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    id: str
    requests_per_s: float
    requests_in_flight: float
    queue_delay_s: float
    run_s: float
    concurrency: int
    def __init__(self, tenant: _Optional[str] = ..., id: _Optional[str] = ..., requests_per_s: _Optional[float] = ..., requests_in_flight: _Optional[float] = ..., queue_delay_s: _Optional[float] = ..., run_s: _Optional[float] = ..., concurrency: _Optional[int] = ...) -> None: ...

class PodStatusResponse(_message.Message):
    __slots__ = ("pods",)
    PODS_FIELD_NUMBER: _ClassVar[int]
    pods: _containers.RepeatedCompositeFieldContainer[PodDescription]
    def __init__(self, pods: _Optional[_Iterable[_Union[PodDescription, _Mapping]]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("id", "here_only")
    ID_FIELD_NUMBER: _ClassVar[int]
    HERE_ONLY_FIELD_NUMBER: _ClassVar[int]
    id: str
    here_only: bool
    def __init__(self, id: _Optional[str] = ..., here_only: bool = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("pod", "chosen", "estimate_s", "reasons")
    POD_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_S_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    pod: str
    chosen: bool
    estimate_s: float
    reasons: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, pod: _Optional[str] = ..., chosen: bool = ..., estimate_s: _Optional[float] = ..., reasons: _Optional[_Iterable[str]] = ...) -> None: ...

class HistoryLine(_message.Message):
    __slots__ = ("at_ms", "pod", "text")
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    at_ms: int
    pod: str
    text: str
    def __init__(self, at_ms: _Optional[int] = ..., pod: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("model", "summary", "waits_for", "route", "candidates", "history", "suspicion", "unanswered")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SUSPICION_FIELD_NUMBER: _ClassVar[int]
    UNANSWERED_FIELD_NUMBER: _ClassVar[int]
    model: ModelDescription
    summary: str
    waits_for: str
    route: str
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    history: _containers.RepeatedCompositeFieldContainer[HistoryLine]
    suspicion: str
    unanswered: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[_Union[ModelDescription, _Mapping]] = ..., summary: _Optional[str] = ..., waits_for: _Optional[str] = ..., route: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., history: _Optional[_Iterable[_Union[HistoryLine, _Mapping]]] = ..., suspicion: _Optional[str] = ..., unanswered: _Optional[_Iterable[str]] = ...) -> None: ...

class DrainPodRequest(_message.Message):
    __slots__ = ("pod",)
    POD_FIELD_NUMBER: _ClassVar[int]
    pod: str
    def __init__(self, pod: _Optional[str] = ...) -> None: ...

class DrainPodResponse(_message.Message):
    __slots__ = ("was_draining",)
    WAS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    was_draining: bool
    def __init__(self, was_draining: bool = ...) -> None: ...

class ReleaseModelRequest(_message.Message):
    __slots__ = ("id", "here_only")
    ID_FIELD_NUMBER: _ClassVar[int]
    HERE_ONLY_FIELD_NUMBER: _ClassVar[int]
    id: str
    here_only: bool
    def __init__(self, id: _Optional[str] = ..., here_only: bool = ...) -> None: ...

class AliasDescription(_message.Message):
    __slots__ = ("id", "tenant", "active", "target", "weights", "owner", "state", "failure", "changed_at_ms", "active_state", "target_state")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[AliasDescription.State]
        DEFINED: _ClassVar[AliasDescription.State]
        TRANSITIONING: _ClassVar[AliasDescription.State]
        TRANSITION_FAILED: _ClassVar[AliasDescription.State]
    STATE_UNSPECIFIED: AliasDescription.State
    DEFINED: AliasDescription.State
    TRANSITIONING: AliasDescription.State
    TRANSITION_FAILED: AliasDescription.State
    class WeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_STATE_FIELD_NUMBER: _ClassVar[int]
    TARGET_STATE_FIELD_NUMBER: _ClassVar[int]
    id: str
    tenant: str
    active: str
    target: str
    weights: _containers.ScalarMap[str, int]
    owner: str
    state: AliasDescription.State
    failure: str
    changed_at_ms: int
    active_state: ModelState
    target_state: ModelState
    def __init__(self, id: _Optional[str] = ..., tenant: _Optional[str] = ..., active: _Optional[str] = ..., target: _Optional[str] = ..., weights: _Optional[_Mapping[str, int]] = ..., owner: _Optional[str] = ..., state: _Optional[_Union[AliasDescription.State, str]] = ..., failure: _Optional[str] = ..., changed_at_ms: _Optional[int] = ..., active_state: _Optional[_Union[ModelState, str]] = ..., target_state: _Optional[_Union[ModelState, str]] = ...) -> None: ...

class SetAliasRequest(_message.Message):
    __slots__ = ("id", "target", "weights", "owner", "expected_target", "update_only", "force", "wait")
    class WeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_TARGET_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    id: str
    target: str
    weights: _containers.ScalarMap[str, int]
    owner: str
    expected_target: str
    update_only: bool
    force: bool
    wait: bool
    def __init__(self, id: _Optional[str] = ..., target: _Optional[str] = ..., weights: _Optional[_Mapping[str, int]] = ..., owner: _Optional[str] = ..., expected_target: _Optional[str] = ..., update_only: bool = ..., force: bool = ..., wait: bool = ...) -> None: ...

class ListAliasesRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "id_prefix")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ID_PREFIX_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    id_prefix: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., id_prefix: _Optional[str] = ...) -> None: ...

class ListAliasesResponse(_message.Message):
    __slots__ = ("aliases", "next_page_token")
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    aliases: _containers.RepeatedCompositeFieldContainer[AliasDescription]
    next_page_token: str
    def __init__(self, aliases: _Optional[_Iterable[_Union[AliasDescription, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteAliasRequest(_message.Message):
    __slots__ = ("id", "owner")
    ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    id: str
    owner: str
    def __init__(self, id: _Optional[str] = ..., owner: _Optional[str] = ...) -> None: ...

class DeleteAliasResponse(_message.Message):
    __slots__ = ("existed",)
    EXISTED_FIELD_NUMBER: _ClassVar[int]
    existed: bool
    def __init__(self, existed: bool = ...) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ("from_pod",)
    FROM_POD_FIELD_NUMBER: _ClassVar[int]
    from_pod: str
    def __init__(self, from_pod: _Optional[str] = ...) -> None: ...

class ProbeResponse(_message.Message):
    __slots__ = ("pod", "incarnation", "draining")
    POD_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    pod: str
    incarnation: str
    draining: bool
    def __init__(self, pod: _Optional[str] = ..., incarnation: _Optional[str] = ..., draining: bool = ...) -> None: ...

class ModelOrder(_message.Message):
    __slots__ = ("kind", "tenant", "id", "generation", "reason", "wait", "even_last")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LOAD: _ClassVar[ModelOrder.Kind]
        UNLOAD: _ClassVar[ModelOrder.Kind]
    LOAD: ModelOrder.Kind
    UNLOAD: ModelOrder.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    EVEN_LAST_FIELD_NUMBER: _ClassVar[int]
    kind: ModelOrder.Kind
    tenant: str
    id: str
    generation: int
    reason: str
    wait: bool
    even_last: bool
    def __init__(self, kind: _Optional[_Union[ModelOrder.Kind, str]] = ..., tenant: _Optional[str] = ..., id: _Optional[str] = ..., generation: _Optional[int] = ..., reason: _Optional[str] = ..., wait: bool = ..., even_last: bool = ...) -> None: ...

class OrderRequest(_message.Message):
    __slots__ = ("from_pod", "orders")
    FROM_POD_FIELD_NUMBER: _ClassVar[int]
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    from_pod: str
    orders: _containers.RepeatedCompositeFieldContainer[ModelOrder]
    def __init__(self, from_pod: _Optional[str] = ..., orders: _Optional[_Iterable[_Union[ModelOrder, _Mapping]]] = ...) -> None: ...

class OrderResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExportNamesRequest(_message.Message):
    __slots__ = ("page_token",)
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_token: str
    def __init__(self, page_token: _Optional[str] = ...) -> None: ...

class StoredRecord(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: bytes
    def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class ExportNamesResponse(_message.Message):
    __slots__ = ("records", "next_page_token")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[StoredRecord]
    next_page_token: str
    def __init__(self, records: _Optional[_Iterable[_Union[StoredRecord, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DialBackRequest(_message.Message):
    __slots__ = ("address", "pod", "incarnation")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    address: str
    pod: str
    incarnation: str
    def __init__(self, address: _Optional[str] = ..., pod: _Optional[str] = ..., incarnation: _Optional[str] = ...) -> None: ...

class DialBackResponse(_message.Message):
    __slots__ = ("reached", "message")
    REACHED_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reached: bool
    message: str
    def __init__(self, reached: bool = ..., message: _Optional[str] = ...) -> None: ...
