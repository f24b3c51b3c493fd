"""`hexcomb`: the commands, and the one place where an error becomes a line on stderr and an exit code.

Commands are loaded by name when they are run, so that `hexcomb --help` costs an interpreter and click, no more. No
traceback reaches a user unless `--traceback` asks for it: `error:` says what happened, `hint:` what to do.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence

import click

from mesh.cli.failure import FAILED, INTERRUPTED, USAGE, AlreadyShown, Failure

_COMMANDS = {
    "serve": ("mesh.cli.serve:build_command", "Run a pod on this machine."),
    "models": ("mesh.cli.models:build_command", "Register, list, show, pin, release and unregister models."),
    "aliases": ("mesh.cli.aliases:build_command", "List, set and delete aliases: canaries, promotion, rollback."),
    "pipelines": ("mesh.cli.pipelines:build_command", "Register, list, show and unregister graphs of models."),
    "explain": ("mesh.cli.explain:build_command", "Say why a model is here, not here, or refused."),
    "pods": ("mesh.cli.pods:build_command", "Show the pods: state, use, requests, queue, version; drain one."),
    "top": ("mesh.cli.top:build_command", "Watch the pods and the hottest models."),
    "infer": ("mesh.cli.infer:build_command", "Ask a model for predictions."),
    "convert": (
        "mesh.cli.convert:build_command",
        "Make a pickle a file that is safe to load, and show that it predicts the same.",
    ),
    "plan": (
        "mesh.cli.plan:build_command",
        "Replay a log: what if there were more memory, another policy, fewer pods?",
    ),
    "demo": ("mesh.cli.demo:build_command", "Train, serve and check hundreds of real models on this machine."),
}


class _LazyCommands(click.Group):
    """Knows the commands' names and one line on each; imports one when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module_name, _, function_name = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module_name), function_name)()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(cls=_LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hexcomb", prog_name="hexcomb")
@click.option("--traceback", "show_traceback", is_flag=True, hidden=True, help="Show the traceback of an error.")
def cli(show_traceback: bool) -> None:
    """Serve hundreds of models from a few shared pods, behind one V2 endpoint.

    \b
    hexcomb demo                                  see it work on this machine
    hexcomb serve                                 run a pod
    hexcomb models register --from ./models       register what is in a directory
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """The `hexcomb` command."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Carry out a command line; the exit code."""
    as_json = "--json" in arguments
    try:
        returned = cli.main(args=arguments, prog_name="hexcomb", standalone_mode=False)
        sys.stdout.flush()
        return returned if isinstance(returned, int) else 0
    except AlreadyShown as shown:
        return shown.exit_code
    except Failure as failure:
        return _fail(failure, as_json)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "hexcomb"
        message = error.format_message()
        if message.startswith("Usage: "):  # a group without a command: click's message is the help
            sys.stderr.write(f"{message}\n")
            return USAGE
        return _fail(Failure(message, hint=f"{path} --help shows what it takes", exit_code=USAGE), as_json)
    except click.ClickException as error:
        return _fail(Failure(error.format_message()), as_json)
    except (KeyboardInterrupt, click.Abort):
        return _fail(Failure("interrupted", exit_code=INTERRUPTED), as_json)
    except BrokenPipeError:
        # The reader of our output (`| head`) has seen enough. Stdout may not be flushed again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if "--traceback" in arguments:
            traceback.print_exc()
        said = str(error) or "no message"
        return _fail(
            Failure(
                f"{type(error).__name__}: {said}",
                hint="this is a fault in hexcomb; `hexcomb --traceback ...` shows where",
                exit_code=FAILED,
            ),
            as_json,
        )


def _fail(failure: Failure, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(json.dumps(failure.to_json()) + "\n")
        sys.stdout.flush()
    sys.stderr.write(f"error: {failure.message}\n")
    if failure.hint:
        sys.stderr.write(f"hint: {failure.hint}\n")
    return failure.exit_code


if __name__ == "__main__":
    main()
