"""How a command fails: one sentence, what to do next, and an exit code that a script can trust.

0: done. 1: the thing asked for failed. 2: it was asked wrongly. 3: no server could be reached. 130: interrupted.
"""

from __future__ import annotations

from typing import Any

FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130


class Failure(Exception):
    """Ends the command. `details` join the JSON form; `code` is a gRPC status name where there is one."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        exit_code: int = FAILED,
        code: str = "",
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        self.code = code
        self.details = details or {}

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints in place of an answer."""
        error: dict[str, Any] = {"message": self.message, "exit_code": self.exit_code}
        if self.hint:
            error["hint"] = self.hint
        if self.code:
            error["code"] = self.code
        return {"error": error, **self.details}


class AlreadyShown(Failure):
    """The command printed what went wrong as part of its answer; only the exit code is left to say."""
