"""`histoclip import`: labels as people have them, into the folder format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from histoclip_lib.cli.app import Debug, app, listing
from histoclip_lib.cli.console import is_plain, messages, say, stoppable, told, visible
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import resolve

EXAMPLES = """\b
Examples:
  histoclip import labels.xlsx --images tiles --out data --dry-run
  histoclip import annotations.json --images tiles --out data
  histoclip import qupath A.geojson --slide A.svs --patch-um 112 --out data
"""

Source = Annotated[list[str], typer.Argument(metavar="[FORMAT] SOURCE", help="A file or folder with labels.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder to write: images, masks and labels.csv.")]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _formats() -> dict[str, str]:
    from histoclip_lib.data.importers import IMPORTERS

    return {name: entry.about for name, entry in IMPORTERS.load().items()}


@app.command("import", cls=listing(TyperCommand, "Formats", _formats), epilog=EXAMPLES)
def import_(
    source: Source,
    out: Out,
    format: Annotated[str, typer.Option(metavar="FORMAT", help="One of the forms below, if not recognised.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    copy: Annotated[bool, typer.Option("--copy", help="Copy images that could be hard links.")] = False,
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder with the images, at any depth.")] = None,
    classes: Annotated[str, typer.Option(metavar="A,B=b,...", help="Classes to import, in order; B is called b.")] = "",
    ignore: Annotated[str, typer.Option(metavar="A,...", help="Classes to leave out.")] = "",
    unknown: Annotated[
        str, typer.Option(metavar="CODE,...", help="What stands for not known, as in --unknown=-1.")
    ] = "",
    none: Annotated[str | None, typer.Option(metavar="NAME", help="What stands for none of the classes.")] = None,
    min_count: Annotated[int, typer.Option(metavar="N", help="Objects (or votes) that make a label.")] = 1,
    file_column: Annotated[str, typer.Option(metavar="NAME", help="The column of files.")] = "",
    label_column: Annotated[str, typer.Option(metavar="NAME", help="The column of class names.")] = "",
    group_column: Annotated[str, typer.Option(metavar="NAME", help="The column of groups (patients).")] = "",
    group_pattern: Annotated[str, typer.Option(metavar="REGEX", help="Finds the group in group or file name.")] = "",
    split: Annotated[Path | None, typer.Option(metavar="FILE", help="File with the names of each part.")] = None,
    meta: Annotated[str, typer.Option(metavar="A,...", help="Columns to keep as meta_A, ...")] = "",
    slide: Annotated[Path | None, typer.Option(metavar="PATH", help="Slide to cut, or a folder of them.")] = None,
    patch: Annotated[int, typer.Option(metavar="PIXELS", help="Side of a patch that is cut.")] = 224,
    patch_um: Annotated[
        float | None, typer.Option(metavar="UM", help="Its field; default: PIXELS of the slide.")
    ] = None,
    mpp: Annotated[float | None, typer.Option(metavar="UM", help="Micrometres per pixel of the slide.")] = None,
    min_coverage: Annotated[float, typer.Option(metavar="SHARE", help="Of a patch that a class covers.")] = 0.01,
    within: Annotated[str, typer.Option(metavar="NAME", help="Annotations that bound what was annotated.")] = "",
    around: Annotated[bool, typer.Option("--around", help="A patch around each point, not a grid.")] = False,
    threshold: Annotated[float, typer.Option(metavar="P", help="Probability that makes a label.")] = 0.5,
    debug: Debug = False,
) -> None:
    """Bring labels of other forms into the folder format.

    The form is found by content, or named before SOURCE. The plan is printed first: classes, counts, groups, and what
    is left out and why. labels.csv is written last, so that a folder with it is complete.
    """
    with stoppable(" Start it again with the same options."), told(debug, code=2):
        from histoclip_lib.data.importers import ImportOptions, plan_import

        *named, path = source
        if len(named) > 1 or (named and format):
            raise HistoCLIPError(f"{' '.join(source)}: give one source, and one format before it or with --format.")
        options = ImportOptions(
            out=resolve(out),
            images=images and resolve(images),
            classes=_names(classes),
            ignore=_names(ignore),
            unknown=_names(unknown),
            none=none,
            min_count=min_count,
            file_column=file_column,
            label_column=label_column,
            group_column=group_column,
            meta=_names(meta),
            group_pattern=group_pattern,
            split=split and resolve(split),
            slide=slide and resolve(slide),
            patch=patch,
            patch_um=patch_um,
            mpp=mpp,
            min_coverage=min_coverage,
            within=within,
            around=around,
            threshold=threshold,
        )
        plan = plan_import(resolve(path), options, format or "".join(named))
        typer.echo(plan.describe())
        if dry_run:
            say(messages(), "nothing was written (--dry-run)")
            return
        plan.write(resolve(out), copy, progress=not is_plain(messages()))
        typer.echo(visible((resolve(out) / "labels.csv").absolute()))
        say(messages(), f"{len(plan.patches):,} patches written. Next: data_dir: {visible(out)} in a parameter file")
