"""`histoclip predict`: apply a saved model to new images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from histoclip_lib.cli.app import Debug, app
from histoclip_lib.cli.console import complain, messages, say, stoppable, told, visible

EXAMPLES = """\b
Examples:
  histoclip predict reports/demo/model patches/ --out predictions
  histoclip predict reports/demo/model mine/labels.csv --out scored
"""


@app.command(epilog=EXAMPLES)
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a saved model, reports/RUN/model.")],
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT", help="Images, folders of images, or a labels.csv.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions and their page.", metavar="DIR")],
    views: Annotated[
        int | None,
        typer.Option(min=1, max=8, help="Flips and rotations to average over; by default as in training."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or amp.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one forward pass.")] = 32,
    debug: Debug = False,
) -> None:
    """Apply a saved model to new images.

    Writes predictions.parquet, predictions.csv and a page, index.html. Images that cannot be read are listed and left
    out; the command then ends as failed.
    """
    with stoppable(" What is done is kept: the same command goes on."):
        with told(debug, code=2):
            from histoclip_lib.models.bundle import load_model
            from histoclip_lib.runs.prediction import find_images, predict_images, write_predictions_page

            loaded = load_model(model, device, precision)
            images, patches = find_images(inputs)
        with told(debug):
            with tqdm(total=len(images), desc="predicting", unit="image") as bar:
                skipped = predict_images(
                    loaded, images, out, views, batch_size, patches, lambda done, _: bar.update(done - bar.n)
                )
            from histoclip_lib.cli.progress import shown

            with shown(messages()) as report:
                page = write_predictions_page(out, report)
    for name, reason in skipped.items():
        complain(f"{name}: {reason}")
    if skipped:
        say(messages(), f"{len(skipped)} of {len(images)} images were left out.")
    typer.echo(visible(page.resolve()))
    raise typer.Exit(1 if skipped else 0)
