"""Calling the methods of a custom model: ordinary ones, coroutines, and generators of either kind.

Coroutines run on one event loop, which turns while the model is asked. Between two requests, and between two answers of
a stream, it stands still, and so does what the model left running on it. One request runs at a time, so a coroutine
gains a model nothing but the libraries that are written for it.

What a method raises is the model's fault (ModelRaised), unless it says that it is the client's (BadInput).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from inspect import isasyncgenfunction, isawaitable, isgeneratorfunction
from typing import Any

from runtime_adapters.errors import BadInput, ModelRaised
from runtime_adapters.isolation_messages import summary_of

_END = object()


class CustomCalls:
    """The calls of one model."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None

    def call(self, name: str, method: Callable[..., Any], *given: object) -> Any:
        """What the method gives back, once it is there. Raises BadInput, ModelRaised, MemoryError."""
        with _blamed(name):
            return self.finished(method(*given))

    def finished(self, returned: object) -> Any:
        """The same of what a method has returned; it raises what the method does."""
        return self._run(returned) if isawaitable(returned) else returned

    def answers(self, name: str, returned: object) -> Generator[Any, None, None]:
        """What the generator that a method has returned yields. Raises as `call` does."""
        if not isinstance(returned, Generator | AsyncGenerator):
            raise ModelRaised(f"{name} returned a {type(returned).__name__}, and no generator")
        try:
            while True:
                with _blamed(name):
                    answer = next(returned, _END) if isinstance(returned, Generator) else self._next(returned)
                if answer is _END:
                    return
                yield answer
        finally:
            with _blamed(name):
                self._run(returned.aclose()) if isinstance(returned, AsyncGenerator) else returned.close()

    def close(self) -> None:
        """Cancel what still runs."""
        if self._runner is not None:
            self._runner.close()

    def _next(self, answers: AsyncGenerator[Any, None]) -> Any:
        return self._run(anext(answers, _END))

    def _run(self, awaitable: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await awaitable

        if self._runner is None:  # made when its first coroutine comes
            self._runner = asyncio.Runner()
        return self._runner.run(awaited())


def yields_answers(method: Callable[..., Any]) -> bool:
    """Whether a method is a generator, of either kind."""
    return isgeneratorfunction(method) or isasyncgenfunction(method)


@contextlib.contextmanager
def _blamed(name: str) -> Iterator[None]:
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except (Exception, SystemExit, asyncio.CancelledError) as error:  # what a model cancels is its own affair
        raise ModelRaised(f"{name} raised {summary_of(error)}") from error
