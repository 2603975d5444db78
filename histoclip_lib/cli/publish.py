"""`histoclip publish`: a run as one archive to hand on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from histoclip_lib.cli.app import Debug, Reports, app
from histoclip_lib.cli.console import results, say, told, visible
from histoclip_lib.common.files import resolve

EXAMPLES = """\b
Examples:
  histoclip publish demo
"""


@app.command(epilog=EXAMPLES)
def publish(
    run: Annotated[str, typer.Argument(help="Name of the run's folder.", metavar="RUN")],
    reports: Reports = Path("reports"),
    debug: Debug = False,
) -> None:
    """Write a run as REPORTS/RUN.zip: its pages, data and saved model.

    Notebooks stay out, as do paths of this machine.
    """
    with told(debug):
        from histoclip_lib.report.publish import publish as write

        say(results(), visible(str(write(resolve(reports) / run))))
