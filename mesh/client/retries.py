"""When a failed call is tried again after a pause: a decision without a clock or chance, carried out by the clients.

Everything that a client calls may be repeated: inference has no effect, registration of an equal spec is none either,
and a compare-and-set fails the second time. So the question is only whether another try can succeed:

1. not after an error that a repetition would repeat (anything but Unavailable, and Overloaded with a hint: a server
   that gives no hint has not promised that room will come);
2. not beyond `attempts_max` (with several endpoints, that many rounds over them: `mesh.client.attempts`);
3. not when the wait would outlast the caller's deadline: the error now is worth more than DEADLINE_EXCEEDED then.

The server's hint is the shortest wait; without one the wait doubles. A random share is added, so that clients that
were refused together do not return together.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.client.errors import HexcombError, Overloaded, Unavailable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts_max` counts the first one; 1 never retries."""

    attempts_max: int = 5
    backoff_first_s: float = 0.1
    backoff_max_s: float = 2.0


def wait_before_retry_s(
    error: HexcombError, attempts_made: int, remaining_s: float, policy: RetryPolicy, chance: float
) -> float | None:
    """How long to wait before the next attempt, or None to give up. `chance` lies in [0, 1)."""
    hint_s = error.retry_after_s
    may_pass = isinstance(error, Unavailable) or (isinstance(error, Overloaded) and hint_s is not None)
    if not may_pass or attempts_made >= policy.attempts_max:
        return None
    backoff_s = min(policy.backoff_first_s * 2.0 ** (attempts_made - 1), policy.backoff_max_s)
    wait_s = (backoff_s if hint_s is None else hint_s) + backoff_s * chance
    return wait_s if wait_s < remaining_s else None
