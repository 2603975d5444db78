"""`histoclip predict`: apply a saved model to new images and slides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from histoclip_lib.cli.app import Debug, app
from histoclip_lib.cli.console import complain, is_plain, messages, say, stoppable, told, visible

EXAMPLES = """\b
Examples:
  histoclip predict reports/demo/model patches/ --out predictions
  histoclip predict reports/demo/model mine/labels.csv --out scored
  histoclip predict reports/demo/model slides/ --out slides --jobs 4
  histoclip predict reports/demo/model section.jpg --mpp 0.5 --out section
"""
FOLDER = "Folder of a saved model, reports/RUN/model."
INPUTS = "Images, slides, folders of them, a labels.csv or a slides.csv."


@app.command(epilog=EXAMPLES)
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=FOLDER)],
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT", help=INPUTS)],
    out: Annotated[Path, typer.Option(help="Folder for predictions and their page.", metavar="DIR")],
    views: Annotated[
        int | None, typer.Option(min=1, max=8, help="Flips and rotations to average over: as in training, slides 1.")
    ] = None,
    mpp: Annotated[float | None, typer.Option(help="Micrometres per pixel; every file given is then a slide.")] = None,
    overlap: Annotated[float, typer.Option(min=0, max=0.9, help="Slides: part of a tile in the next one.")] = 0.0,
    min_tissue: Annotated[float, typer.Option(min=0, max=1, help="Slides: least tissue in a tile.")] = 0.5,
    tissue: Annotated[
        Path | None, typer.Option(help="Slides: PNG mask or GeoJSON of the tissue, or a folder of these.")
    ] = None,
    coordinates: Annotated[
        Path | None, typer.Option(help="Slides: H5 of TRIDENT or CLAM, or a folder of these.")
    ] = None,
    patch_mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of the training patches, if unknown.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or amp.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one forward pass.")] = 32,
    jobs: Annotated[int | None, typer.Option(min=1, help="Slides: worker processes.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Slides: address or file of a Dask scheduler.")] = None,
    debug: Debug = False,
) -> None:
    """Apply a saved model to new images and whole slides.

    Writes a page, index.html, and for images predictions.parquet and .csv, for each slide tiles.parquet, tiles.csv
    (wsinfer), tiles.geojson (QuPath) and heatmap.ome.tif. What cannot be read is listed and left out; the command then
    ends as failed.
    """
    with stoppable(" What is done is kept: the same command goes on."), told(debug, code=2):
        from histoclip_lib.models.bundle import load_model
        from histoclip_lib.runs.prediction import find_images
        from histoclip_lib.runs.slides import SlideOptions, find_slides

        loaded = load_model(model, device, precision)
        slides, others = find_slides(inputs, all_files=mpp is not None)
        images, patches = find_images(others) if others else ([], None)
        options = SlideOptions(
            mpp, overlap, min_tissue, tissue, coordinates, views or 1, batch_size, patch_mpp, device, precision
        )
    failed: dict[str, str] = {}
    with stoppable(" What is done is kept: the same command goes on."), told(debug):
        if images:
            from histoclip_lib.runs.prediction import predict_images

            with tqdm(total=len(images), desc="predicting", unit="image", disable=is_plain(messages())) as bar:
                failed |= predict_images(
                    loaded, images, out, views, batch_size, patches, lambda done, _: bar.update(done - bar.n)
                )
        if slides is not None:
            failed |= _predict_slides(loaded.folder, slides, out, options, jobs, scheduler)
        from histoclip_lib.cli.progress import shown
        from histoclip_lib.runs.prediction import write_prediction_pages

        with shown(messages()) as report:
            page = write_prediction_pages(out, report)
    for name, reason in failed.items():
        complain(f"{name}: {reason}" if name not in reason else reason)
    if failed:
        total = len(images) + (0 if slides is None else len(slides.paths))
        say(messages(), f"{len(failed)} of {total} images and slides failed.")
    typer.echo(visible(page.resolve()))
    raise typer.Exit(1 if failed else 0)


def _predict_slides(
    model: Path, table: object, out: Path, options: object, jobs: int | None, scheduler: str | None
) -> dict[str, str]:
    """Predict slides with a line for each that is done; return why those that failed did so."""
    from contextlib import nullcontext

    from histoclip_lib.common.executors import open_executor
    from histoclip_lib.runs.slides import predict_slides

    failed: dict[str, str] = {}
    bars: dict[Path, tqdm] = {}

    def progress(slide: Path, done: int, total: int) -> None:
        if slide not in bars:
            quiet = is_plain(messages())  # bars are for terminals
            bars[slide] = tqdm(total=total, initial=done, desc=visible(slide.name), unit="tile", disable=quiet)
        bars[slide].update(done - bars[slide].n)

    def report(slide: Path, error: str) -> None:
        if slide in bars:
            bars[slide].close()
        if error:
            failed[str(slide)] = error
        say(messages(), f"  {visible(slide.name)}  {'failed' if error else 'done'}")

    here = jobs is None and scheduler is None
    with nullcontext() if here else open_executor(jobs, scheduler) as executor:
        predict_slides(model, table, out, options, executor, report, progress)
    return failed
