"""What is written down of a request that ran here: metrics, statistics, the access log, and the sizes that came.

One place for all of it, so that the ways a request can run (on the loop, on a thread, by a runtime, as a stream) count
alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mesh.access_log import AccessLog, ColdStart
from mesh.large_requests import LARGE_BYTES
from mesh.resident import Resident
from placement.records import ModelRecord
from runtime_adapters.base import Array
from runtime_adapters.workspace import shape_of


class Outcomes:
    """Writes down; on the event loop."""

    def __init__(
        self, code_of: Callable[[Exception], str], access_log: AccessLog | None, large_came: Callable[[], None]
    ) -> None:
        """`large_came` hears of requests of `LARGE_BYTES` and more."""
        self._code_of = code_of
        self._access_log = access_log
        self._large_came = large_came

    def notice_size(self, resident: Resident, inputs: Mapping[str, Array], size_bytes: int) -> None:
        """A request larger than `SMALL_REQUEST_BYTES` came."""
        if size_bytes >= LARGE_BYTES:
            self._large_came()
        if size_bytes > resident.request_bytes_max:
            resident.larger_request(shape_of(inputs, size_bytes))

    def failed(self, resident: Resident, error: Exception, ended: float, began: float) -> None:
        """Times are `time.perf_counter`'s."""
        resident.meter.failed(self._code_of(error))
        resident.tally.failed(ended - began, ended)

    def answered(
        self, record: ModelRecord, resident: Resident, ended: float, began: float, wait_s: float | None
    ) -> None:
        """`wait_s`: what it waited for its model to be loaded; None: nothing, the copy was here."""
        seconds = ended - began
        resident.meter.answered(seconds, cold=wait_s is not None)
        resident.tally.answered(seconds, ended, wait_s or 0.0)
        if self._access_log is not None:
            copy = resident.copy
            met = None
            if wait_s is not None:
                met = ColdStart(copy.size.total_bytes, copy.load_time_s, copy.fetch_time_s, wait_s)
            self._access_log.answered(record.tenant, record.id, seconds, met)
