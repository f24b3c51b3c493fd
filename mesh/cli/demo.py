"""`hexcomb demo`: hundreds of real models on this machine, every prediction checked."""

from __future__ import annotations

from pathlib import Path

import click

from mesh.cli.failure import FAILED, AlreadyShown, Failure
from mesh.cli.output import print_json, stderr_console, stdout_console


def build_command() -> click.Command:
    """The command."""
    return demo


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--models",
    type=click.IntRange(min=1, max=100_000),
    default=300,
    show_default=True,
    metavar="N",
    help="Models to train and serve.",
)
@click.option(
    "--requests", type=click.IntRange(min=0), default=20_000, show_default=True, metavar="N", help="Requests to send."
)
@click.option(
    "--pods",
    type=click.IntRange(min=1, max=32),
    default=1,
    show_default=True,
    metavar="N",
    help="Serve from a pool of N pods on an etcd of its own; one pod is killed and one drained in the middle.",
)
@click.option(
    "--capacity-fraction",
    type=click.FloatRange(min=0, min_open=True, max=10),
    default=0.2,
    show_default=True,
    metavar="F",
    help="Memory of the server, or of all pods together, as a share of what all models need.",
)
@click.option("--seed", type=int, default=1, show_default=True, metavar="N", help="Another seed: other models.")
@click.option(
    "--zipf",
    "zipf_exponent",
    type=click.FloatRange(min=0, max=4),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Skew of popularity: rank r is asked for in proportion to 1/r^S.",
)
@click.option(
    "--in-flight",
    type=click.IntRange(min=1, max=256),
    default=8,
    show_default=True,
    metavar="N",
    help="Requests under way at a time.",
)
@click.option(
    "--kinds",
    default="",
    metavar="LIST",
    help="Only these kinds of artifact, separated by commas: 'onnx,xgboost ubj,lightgbm'.",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where trained models are kept.  [default: ~/.cache/hexcomb/demo]",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Leave the server running afterwards, with its data in DIR.",
)
@click.option(
    "--access-log",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write down who was asked for when, for `hexcomb plan`. FILE is written anew; with --pods each pod has one of "
    "its own beside it (FILE-pod-0, ...).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def demo(
    models: int,
    requests: int,
    pods: int,
    capacity_fraction: float,
    seed: int,
    zipf_exponent: float,
    in_flight: int,
    kinds: str,
    cache_dir: Path | None,
    keep: Path | None,
    access_log: Path | None,
    as_json: bool,
) -> None:
    """Train 300 small real models, serve them with memory for a fifth of them, send 20,000 requests through a V2
    client, and compare every prediction with the framework's own. With --pods 4, from four pods, of which one is
    killed and one is drained meanwhile.

    Exits with 1 if any answer was wrong, any request failed, or the server used more memory than it may.
    """
    try:
        from mesh.client.errors import HexcombError
        from mesh.demo.etcd_server import EtcdFailed, EtcdMissing
        from mesh.demo.recipes import KINDS
        from mesh.demo.report import show_outcome
        from mesh.demo.run import DemoFailed, DemoOptions, run_demo
        from mesh.demo.server import ServerFailed
        from mesh.demo.trainers import TrainingFailed, default_cache_dir
    except ImportError as error:
        raise _not_installed(error) from error
    _check_client_package()
    chosen = tuple(kind.strip() for kind in kinds.split(",") if kind.strip())
    if unknown := [kind for kind in chosen if kind not in KINDS]:
        raise click.UsageError(f"--kinds: {unknown[0]!r} is not known; known are {', '.join(KINDS)}")
    options = DemoOptions(
        models=models,
        requests=requests,
        pods=pods,
        capacity_fraction=capacity_fraction,
        seed=seed,
        zipf_exponent=zipf_exponent,
        in_flight=in_flight,
        cache_dir=cache_dir or default_cache_dir(),
        kinds=chosen,
        keep=keep,
        access_log=access_log,
    )
    try:
        outcome, kept = run_demo(options, stderr_console(), quiet=as_json)
    except (DemoFailed, TrainingFailed, ServerFailed, EtcdMissing, EtcdFailed, HexcombError) as error:
        raise Failure(str(error)) from error
    if as_json:
        print_json(outcome.to_json())
    else:
        console = stdout_console()
        console.print()
        show_outcome(outcome, console)
        if kept is not None:
            kill = "kill " + " ".join(map(str, kept.pids))
            console.print(f"\nWhat serves goes on; stop it with `{kill}`. Try:", markup=False)
            console.print(f"  export HEXCOMB_ENDPOINT={kept.grpc_endpoints}", markup=False)
            for line in ("hexcomb models list", "hexcomb pods", f"curl http://{kept.http_endpoint}/metrics"):
                console.print(f"  {line}", markup=False)
        if options.access_logs:
            files = " ".join(str(path) for path in options.access_logs)
            console.print(f"\nWho was asked for when: hexcomb plan {files}", markup=False)
    if outcome.failures:
        raise AlreadyShown("the demo failed", exit_code=FAILED)


def _check_client_package() -> None:
    import importlib.util

    if importlib.util.find_spec("tritonclient") is None:
        raise _not_installed(ModuleNotFoundError("No module named 'tritonclient'", name="tritonclient"))


def _not_installed(error: ImportError) -> Failure:
    return Failure(f"the demo needs {error.name or error}", hint="install it with: pip install 'hexcomb[demo]'")
