"""Pods that answer, but far too slowly: measured on the requests that this pod forwards to them.

A call's time is compared with what its model usually takes. That expectation falls quickly and rises slowly, so that a
pod that becomes slow is measured against the time before, even if it is the only one that has the model. Who is out is
decided by `placement.policy.outliers` twice a second, over a short window.

Deliberately absent: calls that waited for a load; they say nothing about the pod.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from statistics import median

from placement.policy.outliers import Ejection, LatencySample, plan_ejections
from placement.policy.snapshot import ModelName, PoolView

log = logging.getLogger("hexcomb.outliers")

WINDOW_S = 2.0
"""Its median turns when half of it is slow: a pod is out within two seconds."""
CALLS_KEPT_MAX = 512
"""Of one pod, in the window."""
MODELS_MAX = 10_000
FALL_WEIGHT = 0.2
RISE_WEIGHT = 0.002
"""Of one call in a model's expectation: a tenfold slower pod is believed after some hundreds of calls."""
LEAST_S = 0.005
"""Models answer in less; below it a hiccup of the network would look like a slow pod."""


class Outlying:
    """Who is out for slowness. Belongs to the event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._expected_s: dict[ModelName, float] = {}
        self._ratios: dict[str, deque[tuple[float, float]]] = {}
        self._ejections: tuple[Ejection, ...] = ()
        self.slow: frozenset[str] = frozenset()

    def observe(self, pod: str, name: ModelName, seconds: float) -> None:
        """A forwarded request was answered by a copy that was there."""
        seconds = max(seconds, LEAST_S)
        expected_s = self._expected_s.pop(name, seconds)  # and last again: the first ones go when there are too many
        weight = FALL_WEIGHT if seconds < expected_s else RISE_WEIGHT
        self._expected_s[name] = expected_s + weight * (seconds - expected_s)
        if len(self._expected_s) > MODELS_MAX:
            del self._expected_s[next(iter(self._expected_s))]
        ratios = self._ratios.get(pod)
        if ratios is None:
            ratios = self._ratios[pod] = deque(maxlen=CALLS_KEPT_MAX)
        ratios.append((self._clock(), seconds / expected_s))

    def turn(self, view: PoolView) -> None:
        """Decide anew."""
        now_s = self._clock()
        samples = []
        for pod, ratios in list(self._ratios.items()):
            while ratios and ratios[0][0] < now_s - WINDOW_S:
                ratios.popleft()
            if not ratios or pod not in view.pods:
                del self._ratios[pod]
                continue
            samples.append(LatencySample(pod, len(ratios), median(ratio for _, ratio in ratios)))
        if not samples and not self._ejections:
            return
        callable_pods = sum(1 for pod in view.pods.values() if pod.ready and not pod.draining)
        self._ejections = plan_ejections(samples, self._ejections, pods=callable_pods, now_s=now_s)
        slow = frozenset(ejection.pod for ejection in self._ejections if ejection.out(now_s))
        for ejection in self._ejections:
            if ejection.pod in slow - self.slow:
                log.warning(
                    "pod %s is out of the routes for %.0f s: it takes %.1f times as long as usual",
                    ejection.pod,
                    ejection.until_s - now_s,
                    ejection.ratio,
                )
        for pod in sorted(self.slow - slow):
            log.info("pod %s gets requests again, on probation", pod)
        self.slow = slow
