"""`--to kuberay`: a command that runs where its storage is, in a pod of a cluster, and is read here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from fraud_ray.cli.display import Display
from fraud_ray.cli.options import settings_of
from fraud_ray.submission.streams import MARK

To = Annotated[
    Literal["kuberay"] | None,
    typer.Option(
        "--to", metavar="kuberay", help="Run in a pod of cluster.overlay's cluster, where its storage is; else here."
    ),
]
_WORDS = "fraud_ray.words"


class Elsewhere(TyperCommand):
    """A command with the option --to, with which a pod runs the same words without it.

    It has the options -c and --set. works: whether it works on data, for which a pod needs what a worker has.
    """

    works = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.params.append(_option())

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_WORDS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        if ctx.params.pop("to") is None:
            return super().invoke(ctx)
        if ctx.params["config"] is None:
            raise typer.BadParameter("goes with -c FILE, whose cluster.overlay says which cluster", param_hint="--to")
        words = _without(ctx.meta[_WORDS], "--to", "-c", "--config")
        raise typer.Exit(self.there(ctx, list(words), partial(print, flush=True)))

    def there(self, ctx: Any, words: list[str], take: Callable[[str], object]) -> int:
        """Has a pod run the command with these words, and returns its exit code.

        take: gets its standard output, line by line; the rest goes to this standard error.
        """
        from fraud_ray.submission.commands import CommandJobs, command
        from fraud_ray.submission.render import render_overlay

        def write(line: str) -> None:
            if line.startswith(MARK):
                take(line.removeprefix(MARK))
            else:
                print(line, file=sys.stderr)

        config, overrides = ctx.params["config"], ctx.params["overrides"] or []
        template = render_overlay(settings_of(config, overrides).cluster.overlay)
        order = command(list(_path(ctx)), words, config, overrides, template, self.works)
        return CommandJobs(template).run(order, write, Display().note)


class Working(Elsewhere):
    """One that works on data."""

    works = True


class Bringing(Elsewhere):
    """One whose option -o names a file, which is written here from what the pod prints for `-o -`."""

    def there(self, ctx: Any, words: list[str], take: Callable[[str], object]) -> int:
        if ctx.params["output"] == "-":
            return super().there(ctx, words, take)
        lines: list[str] = []
        code = super().there(ctx, [*_without(words, "-o", "--output"), "-o", "-"], lines.append)
        if code == 0:
            Path(ctx.params["output"]).write_text("\n".join([*lines, ""]), encoding="utf-8")
        return code


@cache
def _option() -> Any:
    """The option as typer makes it of a function's parameter."""
    app = typer.Typer()

    @app.command()
    def _declared(to: To = None) -> None: ...

    return typer.main.get_command(app).params[0]


def _path(ctx: Any) -> Iterator[str]:
    """The command's name, after those of the groups that it is in; without the program's."""
    if ctx.parent is not None:
        yield from _path(ctx.parent)
        yield ctx.info_name


def _without(words: Sequence[str], *options: str) -> Iterator[str]:
    """The words without these options and their values, as `-c FILE`, `-cFILE` or `--config=FILE`."""
    attached = tuple(name if len(name) == 2 else f"{name}=" for name in options)
    left = iter(words)
    for word in left:
        if word in options:
            next(left, None)
        elif not word.startswith(attached):
            yield word
