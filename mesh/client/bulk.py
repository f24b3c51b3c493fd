"""Thousands of models at once: what to register, and one result for each, whatever happens on the way.

Entries go out in messages of bounded size, one after the other. Each entry is registered whole or not at all, and its
result is its own: a refusal touches no neighbour. When a message has no answer, which of its entries were registered is
not known, and what comes after it is not sent; both are told in the results. To register the same again changes nothing
where it is there, so a bulk that broke off is run again as it was.

One message at a time, since the store writes one after the other anyway: four at once took now less time and now more
(0.3 to 1.5 times as much for 5,000 models, one pod or an etcd pool, messages of 200 or 1,000, a busy machine).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mesh.client import operations
from mesh.client.errors import HexcombError
from mesh.client.operations import Operation
from mesh.client.procedures import Procedure
from mesh.wire.generated import hexcomb_pb2

if TYPE_CHECKING:
    import pandas as pd

    from mesh.client.manifest import BadEntry, Entry

Sent = TypeVar("Sent")
Result = TypeVar("Result", hexcomb_pb2.RegistrationResult, hexcomb_pb2.UnregistrationResult)
Progress = Callable[[int], None]
"""Called after each message of a bulk call with the number of entries that it was about."""


class BadManifest(ValueError):
    """Entries that cannot be registered as they stand; nothing was sent. `bad`: all of them, with where they stand."""

    def __init__(self, bad: Sequence[BadEntry]) -> None:
        first = bad[0]
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        super().__init__(f"{first.origin}: {first.message}{more}")
        self.bad = tuple(bad)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.bad,)


def registrations(source: str | Path | pd.DataFrame) -> list[hexcomb_pb2.Registration]:
    """What to register, from a manifest (YAML, JSON, JSON lines, CSV), a directory of artifacts, or a DataFrame with a
    row for each; `mesh.client.manifest` has the forms. For `register_many`.

    Raises BadManifest, or ValueError and OSError where there is nothing to read.
    """
    from mesh.client.manifest import collect, of_frame

    found = collect(Path(source)) if isinstance(source, str | Path) else of_frame(source, Path.cwd())
    if found.bad:
        raise BadManifest(found.bad)
    return [to_wire(entry) for entry in found.entries]


def to_wire(entry: Entry, load: bool = False) -> hexcomb_pb2.Registration:
    """As it is sent. `load`: whatever it says itself."""
    from placement.records import spec_to_mapping

    spec: Any = spec_to_mapping(entry.spec)
    message = hexcomb_pb2.Registration(id=entry.id, spec=hexcomb_pb2.ModelSpec(**spec), load_now=entry.load or load)
    if entry.if_generation is not None:
        message.if_generation = entry.if_generation
    return message


def register_many(
    entries: Iterable[hexcomb_pb2.Registration], on_progress: Progress | None, entries_per_call: int
) -> Procedure[list[hexcomb_pb2.RegistrationResult]]:
    """Raises what the first message ended with, if that is no answer."""

    def failed(entry: hexcomb_pb2.Registration, status: int, message: str) -> hexcomb_pb2.RegistrationResult:
        return hexcomb_pb2.RegistrationResult(id=entry.id, status_code=status, message=message)

    return _each(operations.register_many(entries, entries_per_call), failed, on_progress)


def unregister_many(
    ids: Iterable[str], on_progress: Progress | None
) -> Procedure[list[hexcomb_pb2.UnregistrationResult]]:
    """Raises what the first message ended with, if that is no answer."""

    def failed(model_id: str, status: int, message: str) -> hexcomb_pb2.UnregistrationResult:
        return hexcomb_pb2.UnregistrationResult(id=model_id, status_code=status, message=message)

    return _each(operations.unregister_many(ids), failed, on_progress)


def _each(
    messages: Iterator[tuple[Sequence[Sent], Operation[Sequence[Result]]]],
    failed: Callable[[Sent, int, str], Result],
    on_progress: Progress | None,
) -> Procedure[list[Result]]:
    results: list[Result] = []
    broken: HexcombError | None = None
    for sent, operation in messages:
        why = "not sent, since a message before it was not answered"
        if broken is None:
            try:
                answered: Sequence[Result] = yield operation
                results += answered
            except HexcombError as error:
                if not results:
                    raise
                broken = error
                if error.sent:
                    why = "not known, since it was not answered; do it again, which changes nothing where it was done"
        if broken is not None:
            results += [failed(each, broken.status, f"{why}: {broken}") for each in sent]
        if on_progress is not None:
            on_progress(len(sent))
    return results
