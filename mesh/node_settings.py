"""What the settings ask of this box, in the words of a pod's parts: its device, its cache's limits, where it listens.

Whatever cannot be had is told before anything is started.
"""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cache.limits import CacheLimits
from cache.tenancy import check_shares
from cache.types import Bytes
from mesh.box import this_box
from mesh.disk_room import disk_room
from mesh.endpoint.payloads import Watcher, parse_watcher
from mesh.endpoint.relay import BY_HEADER, DataPlane, InvalidDataPlane, parse_data_plane
from mesh.loading.places import HOST_MEMORY, HOST_TIER, place_of
from mesh.pod import runtime_reports
from mesh.settings import Settings, box_limits
from mesh.tenant_shares import tenant_shares
from mesh.transport.base import ListenAddress
from mesh.transport.choosing import Choice, TransportMissing, choose_transport, why_no_native
from mesh.transport.listening import with_port
from placement.constraints import NO_CONSTRAINTS, Constraints, parse_constraints
from runtime_adapters.base import CPU, Device
from runtime_adapters.devices import cuda_devices

log = logging.getLogger("hexcomb.node")

_DEVICE_SHARE = 0.9
"""Of a GPU's memory for models by default; the rest is context and workspace."""


class CannotStart(Exception):
    """The pod cannot start; the message says why and what to do."""


def installed_formats(beside: Iterable[str] = ()) -> frozenset[str]:
    """Formats whose frameworks are here, or in servers beside the pod."""
    return frozenset(report.format for report in runtime_reports() if report.available).union(beside)


def chosen_devices(settings: Settings) -> tuple[Device, ...]:
    """The devices that models run on, all of one kind. Raises CannotStart when one that was asked for is not there."""
    wish = settings.device
    if wish == "cpu":
        return (CPU,)
    scan = cuda_devices()
    found = tuple(info.device for info in scan.devices)
    if not found and wish == "auto":
        return (CPU,)
    if not found:
        raise CannotStart(f"device: `{wish}` was asked for, but {scan.why_none}; use --device cpu")
    if wish == "all":
        return found
    if wish in ("auto", "cuda"):
        return found[:1]
    named = tuple(Device("cuda", int(name.removeprefix("cuda:"))) for name in wish.split(","))
    for device in named:
        if device not in found:
            here = ", ".join(map(str, found))
            raise CannotStart(f"device: {device} was asked for; here are {here}; name those, or say `all`")
    return named


def cache_limits(
    settings: Settings, devices: Sequence[Device], beside: Mapping[Device, int] | None = None
) -> CacheLimits:
    """The cache's limits from the settings. `beside`: what servers beside the pod hold at most. Raises CannotStart."""
    capacity = Bytes.of(HOST_MEMORY, int(settings.capacity))
    for device, capacity_bytes in (beside or {}).items():
        capacity = capacity + Bytes.of(place_of(device), capacity_bytes)
    main = [place_of(device) for device in devices]
    if HOST_MEMORY not in main:
        host_bytes = int(settings.capacity) // 2 if settings.host_capacity is None else int(settings.host_capacity)
        if settings.host_capacity is None:
            capacity = capacity - Bytes.of(HOST_MEMORY, host_bytes)
        on_devices = Bytes.sum(Bytes.of(place_of(device), _device_bytes(settings, device)) for device in devices)
        capacity = capacity + Bytes.of(HOST_TIER, host_bytes) + on_devices
    tenants = tenant_shares(settings.tenant_shares, settings.tenant_limits, capacity, main)
    try:
        check_shares(tenants, capacity)
    except ValueError as error:
        raise CannotStart(f"tenant_shares: {error}") from error
    return CacheLimits(
        capacity=capacity,
        tenants=tenants,
        loads_concurrent_max=settings.loads_concurrent_max,
        fetches_concurrent_max=settings.fetches_concurrent_max,
        waiters_per_model_max=settings.waiters_per_model_max,
        waiters_total_max=settings.waiters_max,
        wait_max_s=settings.wait_max_s,
        residency_min_s=settings.residency_min_s,
        residency_override_wait_s=settings.residency_override_wait_s,
        thrash_control=settings.thrash_control,
        prefetch=settings.prefetch,
        prefetch_period_min_s=settings.prefetch_period_min_s,
        failure_backoff_base_s=settings.failure_backoff_base_s,
        failure_backoff_max_s=settings.failure_backoff_max_s,
        pinned_bytes_per_tenant_max=None if settings.pinned_max is None else int(settings.pinned_max),
    )


def _device_bytes(settings: Settings, device: Device) -> int:
    if settings.device_capacity is not None:
        return int(settings.device_capacity)
    return next(int(info.total_bytes * _DEVICE_SHARE) for info in cuda_devices().devices if info.device == device)


def file_prefixes(settings: Settings) -> tuple[Path, ...] | None:
    """Directories that file:// may read; None: any, which only a pod on loopback allows by default."""
    if settings.file_prefixes:
        return tuple(Path(prefix) for prefix in settings.file_prefixes)
    return None if settings.is_loopback else ()


def listen_addresses(settings: Settings) -> list[ListenAddress]:
    """The pod's gRPC address, and one more for each tenant that has its own."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return [
        ListenAddress(f"{host}:{settings.grpc_port}"),
        *(ListenAddress(f"{host}:{port}", tenant) for tenant, port in settings.tenant_addresses.items()),
    ]


def chosen_transport(settings: Settings) -> Choice:
    """What speaks gRPC. Raises CannotStart when the one that was asked for is not there."""
    try:
        return choose_transport(
            settings.transport,
            listen_addresses(settings),
            is_pooled=settings.is_pooled,
            why_no_native=why_no_native,
        )
    except TransportMissing as error:
        raise CannotStart(str(error)) from error


def read_constraints(settings: Settings) -> Constraints:
    """The labels that models of each format need. Raises PlacementError."""
    if settings.type_constraints is None:
        return NO_CONSTRAINTS
    return parse_constraints(read_file(settings.type_constraints, "type_constraints"))


def read_data_plane(settings: Settings) -> DataPlane:
    """Which methods of runtimes clients may call. Raises CannotStart."""
    if settings.data_plane is None:
        return BY_HEADER
    try:
        return parse_data_plane(read_file(settings.data_plane, "data_plane"))
    except InvalidDataPlane as error:
        raise CannotStart(f"data_plane: {settings.data_plane}: {error}") from error


def payload_watchers(settings: Settings) -> list[Watcher]:
    """Who is told of requests and answers. Raises CannotStart."""
    try:
        return [parse_watcher(text) for text in settings.payload_processors]
    except ValueError as error:
        raise CannotStart(f"payload_processors: {error}") from error


def read_file(path: Path, setting: str) -> str:
    """The text of a file that a setting names. Raises CannotStart."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStart(f"{setting}: {path} cannot be read: {error}") from error


def peer_address(settings: Settings) -> str:
    """Where other pods' batches are taken: on the address of everything else, at a port of their own."""
    return with_port(listen_addresses(settings)[0].address, settings.peer_port)


def own_host() -> str:
    """This host's address on its network: that of the interface towards everywhere else. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def check_box(settings: Settings, disk_used_bytes: int) -> None:
    """Tell what the pod's limits are and whether this box has what they promise; `disk_used_bytes` is the disk tier's.

    Raises CannotStart for a disk tier that the file system could never hold.
    """
    box = this_box()
    for limit in box_limits(settings):
        log.info("%s %s: %s", limit.name, f"{limit.value:,.0f}", limit.origin)
    if settings.model_threads > box.cpus:
        log.warning("model_threads is %d, and this box has %g CPUs", settings.model_threads, box.cpus)
    disk = shutil.disk_usage(settings.data_dir)
    room = disk_room(
        int(settings.disk_capacity),
        asked_for="disk_capacity" in settings.model_fields_set,
        used_bytes=disk_used_bytes,
        free_bytes=disk.free,
        total_bytes=disk.total,
        where=str(settings.data_dir),
    )
    if room.error:
        raise CannotStart(room.error)
    if room.warning:
        log.warning("%s", room.warning)
