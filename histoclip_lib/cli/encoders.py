"""`histoclip encoders`: the registered encoders, and whether one of them can be had on this machine."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated

import typer

from histoclip_lib.cli.app import Debug, app
from histoclip_lib.cli.console import aligned, messages, results, say, told, visible

if TYPE_CHECKING:
    from histoclip_lib.clip.registry import EncoderEntry

EXAMPLES = """\b
Examples:
  histoclip encoders
  histoclip encoders --check plip
  histoclip encoders --check uni2-h --pretrained models/uni2-h
"""
COLUMNS = ["backbone", "what it is", "kind", "image", "um/px", "TCGA", "gated", "here", "licence"]


@app.command(epilog=EXAMPLES)
def encoders(
    check: Annotated[
        str, typer.Option(help="Say whether this one can be had here; nothing is loaded.", metavar="NAME")
    ] = "",
    pretrained: Annotated[
        str, typer.Option(help="As in a parameter file: an open_clip tag, a folder or a file.", metavar="WEIGHTS")
    ] = "",
    debug: Debug = False,
) -> None:
    """List encoders; say with --check whether one can be had here.

    Image: side in pixels. um/px: of its training patches. TCGA: whether its training images held any. Besides those
    listed, backbone takes any open_clip name, hf-hub:OWNER/MODEL and local-dir:DIR. --check fails where the
    encoder cannot be had.
    """
    with told(debug, code=2):
        from histoclip_lib.clip.registry import ENCODERS, OPEN_CLIP

        if check:
            raise typer.Exit(0 if _check(check, pretrained) else 1)
        lines = [_line(entry) for entry in ENCODERS.load().values() if entry.name != OPEN_CLIP]
        table = aligned(COLUMNS, lines, len(COLUMNS))
        table.columns[0].no_wrap = True  # a name is copied, or looked for with grep
        results().print(table)


def _line(entry: EncoderEntry) -> list[str]:
    return [
        entry.name,
        entry.title,
        "images and text" if entry.has_text else "images",
        str(entry.image_size or "?"),
        ", ".join(f"{value:g}" for value in entry.mpp) or "?",
        entry.tcga,
        "yes" if entry.gated else "no",
        "yes" if entry.weights_at_hand(entry.name, "") else "no",
        entry.licence,
    ]


def _check(backbone: str, pretrained: str) -> bool:
    """Print what is known of an encoder and whether it can be had; return whether it can."""
    from histoclip_lib.clip.availability import find_encoder
    from histoclip_lib.clip.registry import encoder_entry

    entry = encoder_entry(backbone, pretrained)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = find_encoder(backbone, pretrained)
    facts = {
        "encoder": entry.title,
        "source": f"hf-hub:{entry.hub}{' (gated)' if entry.gated else ''}" if entry.hub else "",
        "licence": entry.licence,
        "trained on": entry.pretraining.replace("**", ""),
        "TCGA": f"{entry.tcga}{f' ({entry.tcga_source})' if entry.tcga_source else ''}",
        "here": found.place or "no",
        "missing": ", ".join(found.missing),
        "verdict": found.reason or ("ready" if found.place else "a run fetches it from the hub"),
    }
    for name, text in facts.items():
        if text:
            typer.echo(f"{name:<11} {visible(text)}")
    for warning in caught:
        say(messages(), f"note: {visible(warning.message)}")
    return not found.reason
