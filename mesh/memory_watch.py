"""Watching the memory of the box, once a second, and holding less while it is short.

The reading is made on a thread (`runtime_adapters.memory_reading`), the rule is pure (`mesh.pressure`), the cache
evicts (`CapacityChanged`). Here is what connects them: the loop, the log line at the beginning and the end of an
episode, what metrics and the status show.

A reading is about RAM, and on a pod with GPUs two places lie in it: what models hold there beside their GPU, and the
host tier. The rule is about both together. What is parked serves nobody, so it leaves first.

Deliberately absent: GPU memory as the driver sees it. A device's capacity is lowered when a framework found none left
there, and comes back with time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence

from cache.events import CapacityChanged
from cache.types import Bytes, Place
from mesh.pressure import (
    Level,
    Pressure,
    PressureLimits,
    after_a_while,
    after_reading,
    after_running_out,
    calm,
    shared_out,
)
from mesh.telemetry import Sample
from mesh.threads import InThread, in_thread
from runtime_adapters.malloc import trim
from runtime_adapters.memory_reading import MemoryReading

log = logging.getLogger("hexcomb.memory")

_LEVELS = (Level.CALM, Level.REDUCED, Level.RECLAIM, Level.DANGER)


class MemoryWatch:
    """The effective capacity of one pod. Owned by the event loop."""

    def __init__(
        self,
        full: Bytes,
        ram: Sequence[Place],
        *,
        read: Callable[[], MemoryReading] | None,
        used: Callable[[], Bytes],
        change_capacity: Callable[[CapacityChanged], object],
        every_s: float = 1.0,
        limits: PressureLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        in_thread: InThread = in_thread,
    ) -> None:
        """`full`: the capacity as configured. `ram`: the places that readings are about; what lies in the last of them
        leaves first. `used`: what is held now. Without `read`, or with `every_s` of 0, nothing is watched, and the
        capacity stays as it is."""
        self._full = full
        self._ram = tuple(ram)
        self._read = read if every_s > 0 else None
        self._used = used
        self._change_capacity = change_capacity
        self._every_s = every_s
        self._limits = limits or PressureLimits()
        self._clock = clock
        self._in_thread = in_thread
        self._main = self._ram[0]
        """By which the state of all RAM is known."""
        self._states = {place: calm(count) for place, count in full if place not in self._ram}
        self._states[self._main] = calm(sum(full[place] for place in self._ram))
        self._told = CapacityChanged(full)
        self._last: MemoryReading | None = None
        self._last_at_s = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def pressure(self) -> str:
        """Why this pod holds less than it may; empty when it does not."""
        return "; ".join(f"{place}: {state.why}" for place, state in self._states.items() if state.why)

    @property
    def reading(self) -> MemoryReading | None:
        """The last one."""
        return self._last

    def start(self) -> None:
        """Begin to watch."""
        if self._read is not None:
            self._task = asyncio.get_running_loop().create_task(self._watch(self._read))

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def ran_out(self, place: Place, missing_bytes: int, message: str, *, counted: bool) -> None:
        """What is held there now is `missing_bytes` more than there is. `counted`: the kernel says so, and not only a
        framework."""
        main = self._main if place in self._ram else place
        state = self._states.get(main)
        if state is None or self._read is None:
            return
        used = self._used()
        after = after_running_out(
            state,
            self._used_of(main, used),
            missing_bytes,
            message,
            counted=counted,
            now_s=self._clock(),
            limits=self._limits,
        )
        self._adopt({main: after}, used)

    async def _watch(self, read: Callable[[], MemoryReading]) -> None:
        while True:
            try:
                self.turn(await self._in_thread("memory", read))
            except Exception:
                log.exception("reading the memory's state failed")
            await asyncio.sleep(self._every_s)

    def turn(self, reading: MemoryReading) -> None:
        """Take in one reading."""
        now_s, used = self._clock(), self._used()
        before, elapsed_s = self._last, now_s - self._last_at_s
        self._last, self._last_at_s = reading, now_s
        changed = {}
        for place, state in self._states.items():
            if place != self._main:
                changed[place] = after_a_while(state, now_s=now_s, limits=self._limits)
            elif before is not None and before.source == reading.source:
                changed[place] = after_reading(
                    state,
                    before,
                    reading,
                    elapsed_s=elapsed_s,
                    used_bytes=self._used_of(place, used),
                    now_s=now_s,
                    limits=self._limits,
                )
        self._adopt(changed, used)

    def _used_of(self, main: Place, used: Bytes) -> int:
        return sum(used[place] for place in self._ram) if main == self._main else used[main]

    def _capacity(self, used: Bytes) -> Bytes:
        """What each place may hold now."""
        in_ram = shared_out(
            self._states[self._main].capacity_bytes,
            [self._full[place] for place in self._ram],
            [used[place] for place in self._ram],
        )
        return Bytes.from_mapping(
            {place: state.capacity_bytes for place, state in self._states.items()}
            | dict(zip(self._ram, in_ram, strict=True))
        )

    def _adopt(self, changed: dict[Place, Pressure], used: Bytes) -> None:
        before = dict(self._states)
        self._states.update(changed)
        for place, state in changed.items():
            self._tell(place, before[place], state)
            if state.level is Level.DANGER and before[place].level is not Level.DANGER:
                self._in_thread("trim", trim)  # what malloc has kept is the cheapest to give back
        paused = any(state.loads_paused for state in self._states.values())
        wanted = CapacityChanged(self._capacity(used), self.pressure, loads_paused=paused)
        told, self._told = self._told, wanted
        if (wanted.capacity, wanted.loads_paused) != (told.capacity, told.loads_paused):
            self._change_capacity(wanted)

    def _tell(self, place: Place, before: Pressure, state: Pressure) -> None:
        if state.episodes > before.episodes or (state.level is Level.DANGER and before.level is not Level.DANGER):
            log.warning(
                "memory is short on %s: %s. This pod holds at most %d MiB of %d MiB until it is not%s",
                place,
                state.why,
                state.capacity_bytes >> 20,
                state.full_bytes >> 20,
                ", and loads nothing now" if state.loads_paused else "",
            )
        elif state.level is Level.CALM and before.level is not Level.CALM:
            log.info("memory on %s is no longer short: this pod holds up to %d MiB", place, state.full_bytes >> 20)

    def samples(self) -> Iterator[Sample]:
        """Lines of a scrape."""
        for place, _ in self._full:
            state = self._states[self._main if place in self._ram else place]
            labels = (("tier", place.tier), ("device", place.device))
            yield Sample(
                "hexcomb_memory_pressure",
                "0: none; 1: the capacity is on its way back; 2: the kernel takes pages back that are needed; 3: so "
                "little is left that nothing is loaded.",
                labels,
                _LEVELS.index(state.level),
            )
            yield Sample(
                "hexcomb_memory_pressure_episodes_total",
                "Times that memory was short, since the start.",
                labels,
                state.episodes,
            )
            yield Sample(
                "hexcomb_effective_capacity_bytes",
                "What this pod holds at most now; less than its capacity while memory is short.",
                labels,
                self._told.capacity[place],
            )
        if (reading := self._last) is None:
            return
        none: tuple[tuple[str, str], ...] = ()
        for name, about, value in (
            ("limit_bytes", "The memory limit that leaves the least room.", reading.limit_bytes),
            ("used_bytes", "Memory in use against that limit, page cache included.", reading.used_bytes),
            ("working_set_bytes", "The same without idle page cache.", reading.working_set_bytes),
            ("unreclaimable_bytes", "The same without any page cache.", reading.unreclaimable_bytes),
            ("major_faults_total", "Pages that this process waited for.", reading.major_faults),
            ("refaults_total", "Pages that came back after the kernel had taken them.", reading.refaults),
            ("stalled_seconds_total", "Time in which some task waited for memory (PSI).", reading.stalled_us / 1e6),
            ("stopped_seconds_total", "Time in which every task waited for memory (PSI).", reading.stopped_us / 1e6),
            ("oom_kills_total", "Processes that the kernel killed for want of memory.", reading.oom_kills),
        ):
            yield Sample(f"hexcomb_box_memory_{name}", about, none, value)
