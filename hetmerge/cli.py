"""The command line: thin verbs over the library.

Exit codes: 0 good, 1 a merge that failed, 2 bad input or configuration, 130 stopped. Errors are one
line on stderr; set HETMERGE_DEBUG=1 to see the traceback.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import hetmerge as hm
from hetmerge.errors import CheckpointError, ConfigError, HetmergeError, InputError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    help="Merge trained networks of different depth and width, without training.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
STOPPED = 130  # by the user
BAD_INPUT = (InputError, ConfigError, CheckpointError)


def main() -> None:
    """Run the command line; what `hetmerge` calls."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(STOPPED)
    except Exception as error:
        if os.environ.get("HETMERGE_DEBUG") == "1":
            raise
        known = isinstance(error, HetmergeError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        sys.stderr.write(f"hetmerge: error: {' '.join(text.split())}\n")
        sys.exit(2 if isinstance(error, BAD_INPUT) else 1)


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"hetmerge {hm.__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    del version


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("hetmerge-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the split, training and merge.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line only.")] = False,
) -> None:
    """Train two small digit specialists of different shape, merge them, show what is kept."""
    from hetmerge import demo as job

    errors = _console(stderr=True)
    if output.exists() and not output.is_dir():
        raise InputError(f"--output: {output} is not a folder")
    with errors.status("starting") as status:
        result = job.run(output, seed, progress=status.update)
    if as_json:
        sys.stdout.write(json.dumps(result.to_dict()) + "\n")
        return
    console = _console()
    console.print(job.table(result))
    console.print(
        f"layer similarity and alignment: {result.picture}", highlight=False, soft_wrap=True
    )
    console.print(
        f"{result.seconds:.0f} s in all, training included", highlight=False, soft_wrap=True
    )


Polish = Annotated[
    int | None,
    typer.Option(
        "--polish",
        metavar="STEPS",
        min=0,
        show_default=False,
        help="TRAIN the finished merge for STEPS steps on its parents' outputs (off by default).",
    ),
]


@app.command()
def merge(
    config: Annotated[Path, typer.Argument(help="YAML file.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="New folder for the merged model.")],
    polish: Polish = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Merge the models that CONFIG names, and write the result to the new folder OUT."""
    from hetmerge import merge_command
    from hetmerge.folder_merge import unfinished

    try:
        merge_command.run(config, out, None if quiet else _console(), polish)
    except KeyboardInterrupt:
        if unfinished(out).exists():
            sys.stderr.write("hetmerge: stopped; the same command goes on from what is finished\n")
        raise typer.Exit(STOPPED) from None


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="YAML file of a merge.", show_default=False)],
    polish: Polish = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line only.")] = False,
) -> None:
    """Say what merging CONFIG will make and take: shapes, memory, disk, work.

    Reads no weights, unless something in CONFIG needs whole models in memory.
    """
    from hetmerge import plan_command

    sys.stdout.write(plan_command.run(config, as_json, polish) + "\n")


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="A folder that `hetmerge merge` wrote.")],
    tasks: Annotated[
        str, typer.Option(metavar="NAMES", help="Tasks of lm-eval, such as arc_easy,hellaswag.")
    ],
    limit: Annotated[
        int | None, typer.Option(min=1, help="Examples of each task.", show_default="all")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="Folder with more tasks.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Of the models' inputs.")] = 1,
    device: Annotated[str, typer.Option(help="Where the models run, such as cuda.")] = "cpu",
) -> None:
    """Score the model in FOLDER and its parents with lm-eval, and add it to their report."""
    from hetmerge import evaluate_command

    names = [name for name in tasks.split(",") if name]
    found = evaluate_command.run(folder, names, limit, include_path, batch_size, device)
    sys.stdout.write(found + "\n")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A model folder, or module:function.")],
    shape: Annotated[
        str | None, typer.Option("--input", help="Shape of a zero input, such as 1,3,32,32.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Permute every free space and compare outputs.")
    ] = False,
) -> None:
    """Show the spaces of MODEL: which axes share one feature order, and why each pin."""
    from hetmerge import inspect_command

    sys.stdout.write(inspect_command.run(model, shape, verify) + "\n")


@app.command()
def bench(
    only: Annotated[
        str | None, typer.Argument(help="One operation, such as zipping.", show_default=False)
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option("--rows", help="CSV table (or a folder) to add to."),
    ] = None,
) -> None:
    """Time every operation beside its baselines on this machine."""
    from hetmerge import bench_command

    raise typer.Exit(bench_command.run(only, rows))


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr)
