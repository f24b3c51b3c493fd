"""How long to wait before something is tried again: longer each time, up to a limit, never in step with others."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class BackOff:
    """The waits of one thing that fails."""

    base_s: float = 0.5
    limit_s: float = 30.0
    random: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def next_s(self) -> float:
        """After one more failure: from half to the whole of base * 2 ** failures, or of the limit."""
        longest_s = min(self.limit_s, self.base_s * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return longest_s * self.random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It went well."""
        self.failures = 0
