"""What happens to a pool while the demo asks it: one pod is killed, another is drained.

At a third of the requests a pod dies by SIGKILL, as a machine does; how long its part of the hot models is nowhere
servable is measured, and it is started again. At two thirds another one gets SIGTERM, hands over, and leaves.

It goes on in a thread of its own beside the requests, which are told nothing.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mesh.client.client import Client
from mesh.client.errors import HexcombError
from mesh.demo.etcd_server import EtcdFailed
from mesh.demo.local_pool import LocalPod, LocalPool
from mesh.demo.server import ServerFailed
from mesh.wire.generated import hexcomb_pb2

HOT_SHARE = 0.9
"""Of the requests go to the hot models."""
_RESTORED_TIMEOUT_S = 60.0
_ENDED_TIMEOUT_S = 60.0
_LOOK_EVERY_S = 0.1
_CALL_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class UpheavalOutcome:
    """What was done to the pool, and what came of it."""

    kills: int = 0
    drains: int = 0
    lost: int = 0
    """Hot models that only the killed pod had."""
    restored_s: float | None = None
    """From the kill until all of those were servable elsewhere; None: there were none, or it took too long."""
    restarted_s: float | None = None
    """From its new start until the killed pod was ready."""
    drained_s: float | None = None
    """From the SIGTERM until the drained pod had ended."""
    complaints: tuple[str, ...] = ()


def hot_models(draws: Sequence[tuple[int, int]], names: Sequence[str]) -> list[str]:
    """The fewest models that together get HOT_SHARE of these requests, the most popular first.

    Where memory is scarce not all of them fit: `Upheaval` looks at as many as are in memory.
    """
    counts = Counter(model for model, _ in draws)
    hot: list[str] = []
    covered = 0
    for model, count in counts.most_common():
        if covered >= HOT_SHARE * len(draws):
            break
        hot.append(names[model])
        covered += count
    return hot


class Upheaval:
    """One run of it. `answered` may be called by any thread."""

    def __init__(
        self,
        pool: LocalPool,
        requests: int,
        hot: Sequence[str],
        before_loss: Callable[[LocalPod], None],
        restarted: Callable[[LocalPod], None],
    ) -> None:
        """`hot`: the most popular first. `before_loss`: this pod is about to end; `restarted`: it runs again."""
        self._pool = pool
        self._requests = requests
        self._hot = hot
        self._before_loss = before_loss
        self._restarted = restarted
        self._answered = 0
        self._over = False
        self._changed = threading.Condition()
        self._outcome = UpheavalOutcome()
        self._complaints: list[str] = []
        self._thread = threading.Thread(target=self._run, name="upheaval", daemon=True)
        self._thread.start()

    def answered(self, count: int) -> None:
        """So many requests have been answered."""
        with self._changed:
            self._answered = count
            self._changed.notify_all()

    def finish(self) -> UpheavalOutcome:
        """No more requests come; what was begun is ended."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._thread.join()
        return self._outcome

    def _run(self) -> None:
        killed, drained = self._pool.pods[-1], self._pool.pods[0]
        facts: dict[str, float | int | None] = {}
        try:
            if self._comes_to(self._requests // 3):
                facts |= self._kill(killed)
            if self._comes_to(2 * self._requests // 3):
                facts |= self._drain(drained)
        except (ServerFailed, EtcdFailed, HexcombError) as error:
            self._complaints.append(str(error))
        self._outcome = UpheavalOutcome(**facts, complaints=tuple(self._complaints))  # type: ignore[arg-type]

    def _comes_to(self, count: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._answered >= count)
            return self._answered >= count > 0

    def _kill(self, victim: LocalPod) -> dict[str, float | int | None]:
        others = [pod for pod in self._pool.pods if pod is not victim]
        with Client(others[0].grpc_endpoint, timeout_s=_CALL_TIMEOUT_S) as client:
            resident = sum(pod.models_resident for pod in client.pod_status())
            lost = {name for name in self._hot[:resident] if self._servable_on(client, name) == {victim.name}}
            self._before_loss(victim)
            killed_s = time.monotonic()
            victim.kill()
            restored_s = self._wait_restored(client, lost, victim.name, killed_s)
        began_s = time.monotonic()
        victim.start()
        restarted_s = time.monotonic() - began_s
        self._restarted(victim)
        return {
            "kills": 1,
            "lost": len(lost),
            "restored_s": restored_s,
            "restarted_s": round(restarted_s, 2),
        }

    def _wait_restored(self, client: Client, lost: set[str], victim: str, since_s: float) -> float | None:
        if not lost:
            return None
        missing = set(lost)  # one that came back and was evicted again did come back
        while missing:
            missing = {name for name in missing if not self._servable_on(client, name) - {victim}}
            took_s = time.monotonic() - since_s
            if missing and took_s > _RESTORED_TIMEOUT_S:
                self._complaints.append(
                    f"{len(missing)} of {len(lost)} hot models that pod {victim} had were nowhere servable within "
                    f"{_RESTORED_TIMEOUT_S:.0f} s"
                )
                return None
            time.sleep(_LOOK_EVERY_S)
        return round(took_s, 2)

    @staticmethod
    def _servable_on(client: Client, name: str) -> set[str]:
        return {copy.pod for copy in client.describe(name).copies if copy.state == hexcomb_pb2.LOADED}

    def _drain(self, leaving: LocalPod) -> dict[str, float | int | None]:
        self._before_loss(leaving)
        began_s = time.monotonic()
        leaving.drain()
        status = leaving.wait_ended(_ENDED_TIMEOUT_S)
        if status:
            self._complaints.append(f"pod {leaving.name} ended with status {status} after it was drained")
        return {"drains": 1, "drained_s": round(time.monotonic() - began_s, 2)}
