"""`histoclip cache`: what is cached, and the removal of what has not been used for long."""

from __future__ import annotations

from typing import Annotated

import typer

from histoclip_lib.cli.app import Debug, app
from histoclip_lib.cli.console import aligned, results, told, visible
from histoclip_lib.common.cache import CachedFeatures, cache_dir, cached_features, cached_items, sweep_cache

EXAMPLES = """\b
Examples:
  histoclip cache
  histoclip cache --prune 30
"""
MIB = 2**20


@app.command(epilog=EXAMPLES)
def cache(
    prune: Annotated[
        float | None,
        typer.Option(help="Remove what has not been used for this many days; 0 removes all.", min=0, metavar="DAYS"),
    ] = None,
    debug: Debug = False,
) -> None:
    """List what is cached; remove old entries with --prune.

    Features, exported image towers, painted patches and nucleus counts: all of it can be made again. Temporary files
    that killed processes left there are removed.
    """
    with told(debug):
        lines, folder = [], cache_dir()
        sweep_cache(folder)
        for entry in [*cached_features(folder), *cached_items(folder)]:
            old = prune is not None and entry.idle >= prune
            if old:
                entry.remove()
            days = round(entry.idle)
            used = "removed" if old else "today" if entry.idle < 1 else f"{days} day{'s' if days > 1 else ''} ago"
            if isinstance(entry, CachedFeatures):
                about = [f"features, {entry.backbone}", entry.pretrained, entry.dataset]
                counts = [str(entry.views), str(entry.patches)]
            else:
                about, counts = [entry.kind, "", entry.name], ["", ""]
            lines.append([*about, used, *counts, f"{entry.size / MIB:.0f}"])
        if not lines:
            typer.echo(f"{visible(folder)} is empty.")
            return
        typer.echo(visible(folder))
        results().print(aligned(["what", "weights", "data set", "last used", "views", "patches", "MiB"], lines, 4))
