"""Which log lines are written, changed while the pod runs: each severity by itself, as Triton's clients set them.

A filter on the handlers, so that it holds for every logger. Until somebody changes it, `--log-level` alone counts.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

log = logging.getLogger("hexcomb.logging")


@dataclass(frozen=True, slots=True)
class LogLevels:
    """What is written. `verbose`: above 0, lines for debugging too."""

    info: bool = True
    warning: bool = True
    error: bool = True
    verbose: int = 0

    def writes(self, level: int) -> bool:
        """Whether a line of this severity is written."""
        if level >= logging.ERROR:
            return self.error
        if level >= logging.WARNING:
            return self.warning
        return self.info if level >= logging.INFO else self.verbose > 0


class LogSwitch(logging.Filter):
    """Sets what the handlers of a logger write."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        """`logger`: the root, unless said otherwise."""
        super().__init__()
        self._logger = logging.getLogger() if logger is None else logger
        level = self._logger.getEffectiveLevel()
        self.levels = LogLevels(
            level <= logging.INFO, level <= logging.WARNING, level <= logging.ERROR, int(level <= logging.DEBUG)
        )

    def change(self, **changed: bool | int) -> None:
        """Fields of LogLevels."""
        self.levels = replace(self.levels, **changed)  # type: ignore[arg-type]  # the caller names fields
        self._logger.setLevel(logging.DEBUG if self.levels.verbose else logging.INFO)
        for handler in self._logger.handlers:
            handler.addFilter(self)  # once: a filter that is there already is not added again
        log.warning("log settings are now %s", self.levels)

    def filter(self, record: logging.LogRecord) -> bool:
        """Of `logging.Filter`."""
        return self.levels.writes(record.levelno)
