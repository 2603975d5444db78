"""`histoclip model`: what a saved model is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from histoclip_lib.cli.app import Debug, app
from histoclip_lib.cli.console import aligned, results, say, told, visible

models = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at saved models.")
app.add_typer(models, name="model")


@models.command()
def show(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a saved model, reports/RUN/model.")],
    debug: Debug = False,
) -> None:
    """Print what a saved model predicts, with which encoder, and how well it did on held-out patches.

    Its files are compared with their digests; the encoder is not loaded.
    """
    with told(debug, code=2):
        from histoclip_lib.evaluation.text import number_text, range_text
        from histoclip_lib.models.bundle import load_model

        loaded = load_model(model)
    config, console = loaded.config, results()
    weights = f", weights {config.pretrained}" if config.pretrained else ""
    field = f"{config.patch_px} px"
    if config.mpp:
        field += f" at {config.mpp:g} um/px, a field of {config.patch_px * config.mpp:.0f} um"
    training = config.training
    facts = {
        "encoder": f"{config.backbone}{weights}",
        "patches": f"{field}; {config.views} views",
        "trained on": f"{training.get('n_train')} patches of {training.get('dataset')}, split {training.get('split')}",
        "written by": f"histoclip {config.software}",
    }
    facts |= {
        name: f"{number_text(config.scores.get(name))} ({range_text(config.scores.get(f'{name}_ci')) or 'no interval'})"
        for name in ("mAcc", "mAP")
    }
    say(console, visible(config.name), "bold")
    console.print(aligned(["", ""], [[name, text] for name, text in facts.items()], 2))
    lines = [
        [name, words, f"{threshold:.3f}"]
        for name, words, threshold in zip(config.classes, config.words, config.thresholds, strict=True)
    ]
    console.print(
        aligned(["class", "in words", "threshold" if config.calibrated else "threshold (not fitted)"], lines, 2)
    )
