"""`hexcomb models`: register (one, or all of a directory or manifest), list, show, pin, release, unregister."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mesh.cli.connection import Target, connected, target_options
from mesh.cli.failure import FAILED, USAGE, AlreadyShown, Failure
from mesh.cli.output import print_json, print_line, print_table, progress_bar, stderr_console

if TYPE_CHECKING:
    from mesh.client.manifest import BadEntry, Collected

_LIST_LENGTH = 50
_BAD_SHOWN = 50
_BULK_STEP = 200
"""Entries a call, so that the bar moves; one call takes thousands."""


def build_command() -> click.Command:
    """The group, complete."""
    return models


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def models() -> None:
    """Register, list, show, pin, release and unregister models."""


@models.command()
@target_options
@click.argument("name", required=False)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE",
    help="Register every model in a directory, or in a manifest (YAML, JSON, .jsonl, .csv; fields are these flags).",
)
@click.option("--uri", metavar="URI", help="Where the artifact lies: file://, http(s)://, s3://, or a path.")
@click.option("--format", "format_name", metavar="FORMAT", help="onnx, xgboost, ...; left out: found in the artifact.")
@click.option("--capacity-hint", metavar="SIZE", help="Size of a loaded copy, when known beforehand: 25MiB.")
@click.option("--storage-key", metavar="KEY", help="Names credentials that the server holds; never holds any.")
@click.option("--checksum", metavar="sha256:HEX", help="Refuse an artifact with another SHA-256.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
@click.option("--parameter", "parameters", multiple=True, metavar="KEY=VALUE", help="The format's own; repeatable.")
@click.option("--priority", type=int, metavar="N", help="Higher is kept longer; ordinary is 0.")
@click.option("--pinned", is_flag=True, help="Loaded always, never evicted.")
@click.option("--isolation", type=click.Choice(["none", "process"]), help="Run it in a process of its own.")
@click.option("--ttl-s", type=float, metavar="SECONDS", help="Unload a copy that was not used for so long.")
@click.option("--load-timeout-s", type=float, metavar="SECONDS", help="Give a load up after so long.")
@click.option(
    "--batch-rows-max", type=int, metavar="N", help="Rows of several requests in one run at most; 1: each by itself."
)
@click.option(
    "--batch-delay-s",
    type=float,
    metavar="SECONDS",
    help="Keep a request so long for others to run with; not where a run is shorter than a hand-over to a thread.",
)
@click.option("--if-generation", type=int, metavar="N", help="Replace the spec, if the model's generation is N.")
@click.option("--load", is_flag=True, help="Load it now; the answer does not wait for it.")
@click.option(
    "--watch", is_flag=True, help="Stay, and register and load it anew whenever its local file or directory changes."
)
def register(
    target: Target,
    name: str | None,
    source: Path | None,
    format_name: str | None,
    labels: tuple[str, ...],
    parameters: tuple[str, ...],
    pinned: bool,
    load: bool,
    watch: bool,
    **fields: Any,
) -> None:
    """Register a model under NAME, or many with --from.

    Registering the same again changes nothing. Another spec under an existing name is refused unless
    --if-generation gives the generation it replaces.
    """
    fields |= {
        "format": format_name,
        "labels": _pairs("--label", labels),
        "parameters": _pairs("--parameter", parameters),
        "pinned": pinned or None,
    }
    given = sorted(field for field, value in fields.items() if value is not None)
    if source is not None:
        given += ["watch"] if watch else []
        if name is not None or given:
            what = "NAME" if name is not None else "--" + given[0].replace("_", "-")
            raise Failure(
                f"{what} and --from exclude each other", hint="a manifest holds all fields per model", exit_code=USAGE
            )
        _register_many(target, source, load)
        return
    if name is None or fields["uri"] is None:
        missing = "NAME" if name is None else "--uri"
        raise Failure(
            f"{missing} is missing", hint="hexcomb models register NAME --uri URI, or --from DIR|FILE", exit_code=USAGE
        )
    if watch:
        _register_watched(target, {**fields, "name": name, "load": True})
        return
    _register_one(target, {**fields, "name": name, "load": load})


@models.command("list")
@target_options
@click.option("--prefix", default="", metavar="TEXT", help="Only names that begin so.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only models with this label; repeatable.")
@click.option("--limit", type=click.IntRange(min=1), default=_LIST_LENGTH, show_default=True, metavar="N")
@click.option("--all", "show_all", is_flag=True, help="Every model, however many.")
def list_command(target: Target, prefix: str, labels: tuple[str, ...], limit: int, show_all: bool) -> None:
    """List models: name, format, state, size, last use."""
    with connected(target) as client:
        described = client.list_models(prefix, _pairs("--label", labels))
        found = list(described if show_all else itertools.islice(described, limit + 1))
    more = not show_all and len(found) > limit
    found = found[:limit] if more else found
    from mesh.cli.descriptions import MODEL_NUMBERS, model_headings, model_row, to_json

    if target.as_json:
        print_json({"models": [to_json(model) for model in found], "more": more})
        return
    if not found:
        stderr_console().print("no models; `hexcomb models register --from DIR` registers what is in a directory")
        return
    now_s = time.time()
    print_table(model_headings(), [model_row(model, now_s) for model in found], numbers=MODEL_NUMBERS)
    if more:
        stderr_console().print(f"the first {limit}; --all shows every model", style="dim")


@models.command()
@target_options
@click.argument("name")
def show(target: Target, name: str) -> None:
    """Show all there is to know of a model (or of what an alias points at)."""
    with connected(target) as client:
        model = client.describe(name)
    _show_model(target, model)


@models.command()
@target_options
@click.argument("name")
@click.option("--off", is_flag=True, help="Let it be evicted again.")
def pin(target: Target, name: str, off: bool) -> None:
    """Keep a model loaded always, never evicted."""
    with connected(target) as client:
        model = client.set_pinned(name, not off)
    if target.as_json:
        _show_model(target, model)
    else:
        print_line(f"{name}: {'no longer pinned' if off else 'pinned'}")


@models.command()
@target_options
@click.argument("name")
def release(target: Target, name: str) -> None:
    """Let a quarantined or failed model be loaded again as any other.

    Forgets the deaths of pods that it was seen at, and its failed loads. A corrected spec does the same by itself.
    """
    with connected(target) as client:
        model = client.release(name)
    if target.as_json:
        _show_model(target, model)
    else:
        print_line(f"{name}: released")


@models.command()
@target_options
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def unregister(target: Target, names: tuple[str, ...]) -> None:
    """Unregister models. One that is not registered is no error."""
    with connected(target) as client:
        results = client.unregister_many(names)
    failed = [result for result in results if result.status_code]
    if target.as_json:
        print_json(
            {
                "results": [
                    {"name": result.id, "existed": result.existed, "error": result.message or None}
                    for result in results
                ]
            }
        )
    else:
        for result in results:
            if not result.status_code:
                print_line(f"{result.id}: {'unregistered' if result.existed else 'was not registered'}")
        for result in failed:
            sys.stderr.write(f"error: {result.id}: {result.message}\n")
    if failed:
        raise AlreadyShown(f"{len(failed)} failed", exit_code=FAILED)


def _register_one(target: Target, fields: dict[str, Any]) -> None:
    from mesh.client.bulk import to_wire
    from mesh.client.manifest import make_entry

    try:
        entry = make_entry(fields, Path.cwd())
    except ValueError as error:
        raise Failure(str(error), hint="hexcomb models register --help shows the fields", exit_code=USAGE) from None
    with connected(target) as client:
        (result,) = client.register_many([to_wire(entry)])
    if result.status_code:
        raise _refusal(result)
    outcome = _OUTCOMES[result.outcome]
    if target.as_json:
        print_json({"name": result.id, "outcome": outcome, "generation": result.generation})
    else:
        print_line(f"{result.id}: {_SAID[outcome]} (generation {result.generation})")


def _register_watched(target: Target, fields: dict[str, Any]) -> None:
    from mesh.cli.watching import LOOK_S, REVISION_LABEL, TooManyFiles, local_path, watch

    if fields["if_generation"] is not None:
        raise Failure("--if-generation and --watch exclude each other", hint="--watch replaces any", exit_code=USAGE)
    path = local_path(str(fields["uri"]))
    if not path.exists():
        raise Failure(
            f"--uri: {fields['uri']!r} is not there on this machine",
            hint="--watch is for a file or directory of this machine",
            exit_code=USAGE,
        )
    name, told = str(fields["name"]), ""

    def register_revision(revision: str) -> None:
        labels = {**(fields["labels"] or {}), REVISION_LABEL: revision}
        known = _described(target, name)
        generation = None if known is None else int(known.generation)
        _register_one(target, {**fields, "labels": labels, "if_generation": generation})

    def wait() -> bool:
        nonlocal told
        known = _described(target, name)
        failure = "" if known is None else known.failure.message
        if failure and failure != told:
            sys.stderr.write(f"error: {name}: {failure}\n")
        told = failure
        time.sleep(LOOK_S)
        return True

    try:
        path.stat()
        watch(path, register_revision, wait)
    except (OSError, TooManyFiles) as error:
        raise Failure(str(error), hint="--watch is for a file or directory of this machine", exit_code=USAGE) from None


def _described(target: Target, name: str) -> Any:
    """What a pod says of a model; None: it is not registered."""
    from mesh.client.errors import NotFound

    with connected(target) as client:
        try:
            return client.describe(name)
        except NotFound:
            return None


def _register_many(target: Target, source: Path, load: bool) -> None:
    from mesh.client.manifest import collect

    try:
        collected = collect(source)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise Failure(str(error), exit_code=USAGE) from None
    if collected.bad:
        _show_bad(target, collected.bad)
    if not collected.entries:
        raise Failure(
            f"nothing to register in {source}{_unrecognised(collected)}",
            hint="`hexcomb pods --json` lists the formats that a pod can run",
        )
    from mesh.client.bulk import to_wire

    with connected(target) as client, progress_bar(stderr_console(), enabled=not target.as_json) as bar:
        task = bar.add_task("registering", total=len(collected.entries), remark="")
        results = client.register_many(
            [to_wire(entry, load) for entry in collected.entries],
            on_progress=lambda count: bar.advance(task, count),
            entries_per_call=_BULK_STEP,
        )
    _show_bulk(target, collected, results)


def _show_bulk(target: Target, collected: Collected, results: Sequence[Any]) -> None:
    refused = [(entry, result) for entry, result in zip(collected.entries, results, strict=True) if result.status_code]
    counts = dict.fromkeys(_OUTCOMES.values(), 0)
    for result in results:
        counts[_OUTCOMES[result.outcome]] += 1
    summary = {
        "registered": counts["created"],
        "updated": counts["updated"],
        "unchanged": counts["unchanged"],
        "failed": len(refused),
        "unrecognised": len(collected.unrecognised),
    }
    if target.as_json:
        failures = [{"name": entry.id, "origin": entry.origin, "error": result.message} for entry, result in refused]
        print_json({**summary, "failures": failures, "unrecognised_names": list(collected.unrecognised)})
    else:
        rows = [
            ("registered", counts["created"]),
            ("updated", counts["updated"]),
            ("already there", counts["unchanged"]),
            ("failed", len(refused)),
        ]
        if collected.unrecognised:
            rows.append(("not recognised", len(collected.unrecognised)))
        print_table(("outcome", "models"), [(label, f"{count:,}") for label, count in rows], numbers=("models",))
        for entry, result in refused[:_BAD_SHOWN]:
            sys.stderr.write(f"error: {entry.origin}: {entry.id}: {result.message}\n")
        if len(refused) > _BAD_SHOWN:
            sys.stderr.write(f"error: ... and {len(refused) - _BAD_SHOWN} more; --json lists them all\n")
    if refused:
        raise AlreadyShown(f"{len(refused)} failed", exit_code=FAILED)


def _show_bad(target: Target, bad: Sequence[BadEntry]) -> None:
    if not target.as_json:
        for entry in bad[:_BAD_SHOWN]:
            sys.stderr.write(f"error: {entry.origin}: {entry.message}\n")
    raise Failure(
        f"{len(bad)} of the entries cannot be registered as they stand; nothing was registered",
        hint="correct them and run this again",
        exit_code=USAGE,
        details={"bad": [{"origin": entry.origin, "message": entry.message} for entry in bad]},
    )


def _show_model(target: Target, model: Any) -> None:
    from mesh.cli.descriptions import model_details, to_json

    if target.as_json:
        print_json(to_json(model))
        return
    lines = model_details(model, time.time())
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        print_line(f"{label:<{width}}  {value}")


def _unrecognised(collected: Collected) -> str:
    names = collected.unrecognised
    if not names:
        return ""
    more = ", ..." if len(names) > 3 else ""
    return f": {len(names)} entries are of no known format ({', '.join(names[:3])}{more})"


def _refusal(result: Any) -> Failure:
    from mesh.transport.base import StatusCode

    code = StatusCode(result.status_code).name
    hint = ""
    if code == "ALREADY_EXISTS":
        hint = f"`hexcomb models show {result.id}` tells the generation; --if-generation replaces it"
    return Failure(f"{result.id}: {result.message}", hint=hint, code=code)


def _pairs(flag: str, given: Sequence[str]) -> dict[str, str] | None:
    pairs: dict[str, str] = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise Failure(f"{flag}: {text!r} is not KEY=VALUE", exit_code=USAGE)
        pairs[key] = value
    return pairs or None


_OUTCOMES = {0: "refused", 1: "created", 2: "unchanged", 3: "updated"}
"""RegistrationResult.Outcome, in hexcomb.proto."""
_SAID = {"created": "registered", "unchanged": "already registered, unchanged", "updated": "updated", "refused": ""}
