"""The application: its help, the options that several commands take, and its start."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from histoclip_lib import __version__
from histoclip_lib.cli.console import told, visible
from histoclip_lib.common.errors import HistoCLIPError

if TYPE_CHECKING:
    from histoclip_lib.runs.parameters import Parameter

# What loads notebooks, tables or PyTorch is imported by the command that needs it: help comes at once.

HELP = """Score, train and report HistoCLIP on a data set.

A parameter file names the data, the frozen encoder and how the head is trained. A run executes the notebooks with it
and writes their pages to reports/NAME/; reports/index.html gathers all runs.

\b
  histoclip init my-project           write notebooks and parameter files
  histoclip import labels.xlsx --out data  bring labels into the folder format
  histoclip check params/demo.yaml    check parameters and data
  histoclip run params/demo.yaml      execute; an interrupted run resumes
  histoclip table                     print Table I over all runs
  histoclip show demo                 print one run
  histoclip publish demo              write one run as an archive to hand on
  histoclip predict MODEL IMAGES...   apply a run's saved model
"""
EXIT_CODES = """\b
Exit codes: 0 success; 1 a run or its data failed;
2 a parameter file, name or option cannot be used; 130 interrupted.

Paths and tables go to standard output, progress and errors to standard error. NO_COLOR and COLUMNS are respected.
"""

Schema = dict[str, dict[str, "Parameter"]]
Runs = list[tuple[Path, dict[str, object]]]

ParamFiles = Annotated[list[Path], typer.Argument(help="Parameter files, such as params/demo.yaml.", metavar="PARAMS")]
Reports = Annotated[Path, typer.Option(help="Folder below which each run has its own.", metavar="DIR")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def listing(kind: type, title: str, names: Callable[[], dict[str, str]]) -> type:
    """Return a kind of command whose help ends with names and what they are, those of plugins included."""

    class Listing(kind):
        def format_epilog(self, ctx: object, formatter: object) -> None:
            super().format_epilog(ctx, formatter)
            with formatter.section(title):
                try:
                    formatter.write_dl([(name, visible(about)) for name, about in names().items()])
                except HistoCLIPError as error:
                    formatter.write_text(visible(error))

    return Listing


def _registered() -> dict[str, str]:
    from histoclip_lib.clip.registry import ENCODERS, OPEN_CLIP
    from histoclip_lib.data.registry import DATASETS
    from histoclip_lib.evaluation.methods import strategy_names

    encoders = [name for name in ENCODERS if name != OPEN_CLIP]
    return {
        "dataset": ", ".join(DATASETS),
        "backbone": f"{', '.join(encoders)}; any open_clip model, hf-hub:OWNER/MODEL, local-dir:DIR",
        "strategies": ", ".join(strategy_names()),
    }


ListingCommand = listing(TyperCommand, "Registered names", _registered)
app = typer.Typer(
    cls=listing(TyperGroup, "Registered names", _registered),
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=HELP,
    epilog=EXIT_CODES,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"histoclip {__version__}")
        raise typer.Exit


@app.callback()
def histoclip(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def read_checked(params: list[Path], debug: bool, **defaults: object) -> tuple[Schema, Runs]:
    """Return the schema, and the file and values of each run; exit with code 2 where a file cannot be used.

    `defaults` replace those that the notebooks declare.
    """
    with told(debug, code=2):
        from dataclasses import replace

        from histoclip_lib.runs.grids import read_runs
        from histoclip_lib.runs.pipeline import load_schema

        schema = {
            step: {name: replace(each, default=defaults.get(name, each.default)) for name, each in declared.items()}
            for step, declared in load_schema().items()
        }
        return schema, read_runs(params, schema)


def main() -> None:
    """Start the command line."""
    # jsonschema, behind nbformat, compiles a grammar of internationalised addresses, which takes seconds and has no use
    # here; a module that is None counts as not installed.
    sys.modules.setdefault("rfc3987_syntax", None)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
    app(prog_name="histoclip")
