"""`hexcomb aliases`: list, set and delete names that point at models."""

from __future__ import annotations

import time
from typing import Any

import click

from mesh.cli.connection import Target, connected, target_options
from mesh.cli.failure import FAILED, USAGE, Failure
from mesh.cli.output import print_json, print_line, print_table, stderr_console


def build_command() -> click.Command:
    """The group, complete."""
    return aliases


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def aliases() -> None:
    """List, set and delete aliases: names that point at a model, or split traffic over several.

    \b
    hexcomb aliases set churn churn-v1                           requests for churn go to churn-v1
    hexcomb aliases set churn --weights churn-v1=90,churn-v2=10  a canary: one in ten goes to churn-v2
    hexcomb aliases set churn churn-v2 --wait                    promote it; churn-v1 serves until churn-v2 can
    hexcomb aliases set churn churn-v1                           roll back
    """


@aliases.command("list")
@target_options
@click.option("--prefix", default="", metavar="TEXT", help="Only names that begin so.")
def list_command(target: Target, prefix: str) -> None:
    """List aliases: where they point, and whether they are there."""
    with connected(target) as client:
        found = list(client.list_aliases(prefix))
    if target.as_json:
        from mesh.cli.descriptions import to_json

        print_json({"aliases": [to_json(alias) for alias in found]})
        return
    if not found:
        stderr_console().print("no aliases; `hexcomb aliases set NAME MODEL` makes one")
        return
    now_s = time.time()
    print_table(("alias", "points at", "state", "owner", "changed"), [_row(alias, now_s) for alias in found])


@aliases.command("set")
@target_options
@click.argument("name")
@click.argument("model", required=False, default="")
@click.option(
    "--weights",
    default="",
    metavar="MODEL=SHARE,...",
    help="Split the traffic, from now on: a=90,b=10. Shares are parts of their sum.",
)
@click.option("--owner", default="", metavar="NAME", help="Refuse unless it is the alias's owner.")
@click.option("--expect", "expected", default="", metavar="MODEL", help="Refuse unless it points at this one now.")
@click.option("--force", is_flag=True, help="Switch at once, whether the model serves or not.")
@click.option("--wait", is_flag=True, help="Return when the model serves, or could not be loaded.")
def set_command(
    target: Target, name: str, model: str, weights: str, owner: str, expected: str, force: bool, wait: bool
) -> None:
    """Point NAME at MODEL, or split its traffic with --weights.

    A model that is not loaded is loaded first, while the one before it serves on; if it does not load, nothing
    changes for callers, and the alias says why. With --weights all models take requests at once.
    """
    shares = _shares(weights)
    if not model and not shares:
        raise Failure(
            "MODEL is missing", hint="hexcomb aliases set NAME MODEL, or --weights MODEL=SHARE,...", exit_code=USAGE
        )
    if model and shares and model not in shares:
        raise Failure(f"--weights gives {model} no share", hint=f"name it too, if only as {model}=0", exit_code=USAGE)
    with connected(target) as client:
        alias = client.put_alias(name, model, shares, owner=owner, expected_target=expected, force=force, wait=wait)
    if target.as_json:
        from mesh.cli.descriptions import to_json

        print_json(to_json(alias))
    else:
        print_line(f"{name}: {_points_at(alias)}, {_state(alias)}")
    if wait and alias.failure:
        raise Failure(
            f"{name} stays on {alias.active}: {alias.failure}",
            hint=f"`hexcomb explain {alias.target}` says more; the alias moves by itself once that loads",
            exit_code=FAILED,
        )


@aliases.command()
@target_options
@click.argument("name")
@click.option("--owner", default="", metavar="NAME", help="Refuse unless it is the alias's owner.")
def delete(target: Target, name: str, owner: str) -> None:
    """Delete an alias; its models stay. One that is not there is no error."""
    from mesh.client import operations

    with connected(target) as client:
        existed = client.call(operations.remove_alias(name, owner)).existed
    if target.as_json:
        print_json({"name": name, "existed": existed})
    else:
        whose = " of that owner" if owner else ""
        print_line(f"{name}: {'deleted' if existed else f'there was no such alias{whose}'}")


def _shares(text: str) -> dict[str, int]:
    shares: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        # A model's name may hold `=`; a share does not.
        model, separator, share = part.rpartition("=")
        if not separator or not model or not share.isdecimal():
            raise Failure(f"--weights: {part!r} is not MODEL=SHARE", hint="for instance a=90,b=10", exit_code=USAGE)
        if model in shares:
            raise Failure(f"--weights: {model} is given twice", exit_code=USAGE)
        shares[model] = int(share)
    return shares


def _row(alias: Any, now_s: float) -> list[str]:
    from mesh.cli.sizes import show_age

    changed = f"{show_age(now_s - alias.changed_at_ms / 1000)} ago" if alias.changed_at_ms else "-"
    return [alias.id, _points_at(alias), _state(alias), alias.owner or "-", changed]


def _points_at(alias: Any) -> str:
    total = sum(alias.weights.values())
    if not total:
        return str(alias.active)
    largest_first = sorted(alias.weights.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{model} {100 * share / total:.4g} %" for model, share in largest_first)


def _state(alias: Any) -> str:
    from mesh.cli.descriptions import state_name

    if alias.target == alias.active:
        return state_name(alias.active_state)
    if alias.failure:
        return f"cannot move to {alias.target}: {alias.failure}"
    return f"moves to {alias.target}, which is {state_name(alias.target_state)}"
