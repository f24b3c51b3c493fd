"""Which copies are worth their fast form: a pure function of measured heat.

A cold copy maps its weights: it came in a millisecond, and its pages are shared with whoever maps the same file. A hot
one has them packed in memory of its own and runs faster (`runtime_adapters.base.Promotable`). Packing costs a core for
a tenth of a second per 100 MB, needs room for both forms while it lasts, and gives up the sharing. So:

* **Promote** what will save more time than it costs: runs a second x time saved per run, over a horizon, against the
  time to build it, times a margin. How much a run saves is assumed at first and measured at the promotion.
* **Only into free bytes**: for the build, room for a second copy of the weights; after it, what sharing had saved. The
  claim is made before the build, nobody is evicted for it, and nothing is promoted while anybody waits for bytes.
* **Demote** what costs others their place: while free bytes are scarce or somebody waits for some, hot copies whose
  cold form would share bytes that are counted anyway, the coolest first. A hot copy that shares nothing costs no more
  than a cold one.
* **Demote** also what has cooled far below what promoted it (its own memory, which the kernel cannot take back, becomes
  pages that it can), and what was measured to run no faster.

One change at a time: each is looked at with the memory as the one before left it.

Deliberately absent: clocks, models, and the ledger; see `mesh.promoting`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromotionLimits:
    """When a promotion pays."""

    horizon_s: float = 60.0
    """How long a copy is believed to stay as hot as it is."""
    saved_share_assumed: float = 0.2
    """Of a run, until it is measured: packed matrix products take 24 % less for one row, more for a few (2026-11-21,
    25 and 100 MB networks, onnxruntime 1.31)."""
    saved_share_min: float = 0.05
    """A form that saves less than this is not worth having; measured times vary by about as much."""
    build_bytes_per_s: float = 500e6
    """Packing, on a busy core; measured 1,000 MB/s on an idle one."""
    margin: float = 4.0
    """Saved time against the time that the build takes: the forecast is no better than that."""
    cooled_margin: float = 1.0
    """Below this a hot copy is demoted. The gap to `margin` keeps copies from changing back and forth."""
    reserve_share: float = 0.02
    """Of the capacity, kept free by promotions: the next small loads then find room without evicting anybody."""


@dataclass(frozen=True, slots=True)
class CopyHeat:
    """One copy that has two forms."""

    copy_id: int
    name: str
    is_hot: bool
    runs_per_s: float
    run_s: float
    """A run as it is now, in its present form."""
    saved_share: float | None
    """Of a cold run, as measured by a promotion of this content; None: never measured."""
    cold_bytes: int
    hot_bytes: int
    shared_bytes: int
    """Of the cold form's: content that other cold copies map as well, and that counts without this one."""
    in_change: bool = False
    """Its form is being changed already."""


@dataclass(frozen=True, slots=True)
class Promote:
    """Build the fast form. `reserve_bytes`: what both forms take together."""

    copy_id: int
    reserve_bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Demote:
    """Go back to the mapped form."""

    copy_id: int
    why: str


def choose_change(
    copies: Iterable[CopyHeat], free_bytes: int, capacity_bytes: int, *, bytes_wanted: bool, limits: PromotionLimits
) -> Promote | Demote | None:
    """The next change of form, if any is due. `bytes_wanted`: somebody waits for room."""
    copies = [copy for copy in copies if not copy.in_change]
    reserve_bytes = int(limits.reserve_share * capacity_bytes)
    hot = sorted((copy for copy in copies if copy.is_hot), key=lambda copy: (heat(copy, limits), copy.copy_id))
    for copy in hot:
        if copy.saved_share is not None and copy.saved_share < limits.saved_share_min:
            return Demote(copy.copy_id, f"its fast form saves {100 * copy.saved_share:.0f} % of a run only")
        if (bytes_wanted or free_bytes < reserve_bytes) and copy.shared_bytes > 0:
            return Demote(copy.copy_id, f"memory is short; {copy.shared_bytes:,} bytes of it are mapped here anyway")
        if heat(copy, limits) < limits.cooled_margin:
            return Demote(copy.copy_id, f"it has cooled to {copy.runs_per_s:.2g} runs a second")
    if bytes_wanted:
        return None
    cold = sorted((copy for copy in copies if not copy.is_hot), key=lambda copy: (-heat(copy, limits), copy.copy_id))
    for copy in cold:
        # 1. the hottest first; 2. the id, so that equal pictures give equal answers.
        if heat(copy, limits) < limits.margin:
            return None
        if copy.saved_share is not None and copy.saved_share < limits.saved_share_min:
            continue
        if copy.hot_bytes + reserve_bytes <= free_bytes:
            saved_s = heat(copy, limits) * build_s(copy, limits)
            why = (
                f"{copy.runs_per_s:.3g} runs a second of {1e3 * copy.run_s:.3g} ms save {saved_s:.2g} s in "
                f"{limits.horizon_s:g} s, and the build takes {build_s(copy, limits):.2g} s"
            )
            return Promote(copy.copy_id, copy.cold_bytes + copy.hot_bytes, why)
    return None


def heat(copy: CopyHeat, limits: PromotionLimits) -> float:
    """Seconds that the fast form saves within the horizon, per second that its build takes."""
    share = limits.saved_share_assumed if copy.saved_share is None else copy.saved_share
    cold_run_s = copy.run_s / (1 - share) if copy.is_hot else copy.run_s
    return copy.runs_per_s * cold_run_s * share * limits.horizon_s / build_s(copy, limits)


def build_s(copy: CopyHeat, limits: PromotionLimits) -> float:
    """What packing its weights takes."""
    return max(1, copy.hot_bytes) / limits.build_bytes_per_s
