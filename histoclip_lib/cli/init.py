"""`histoclip init`: a folder with notebooks and parameter files, in which runs can be started."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from histoclip_lib.cli.app import Debug, app
from histoclip_lib.cli.console import messages, say, told, visible
from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.common.files import resolve, write_text

EXAMPLES = """\b
Example:
  histoclip init my-project && cd my-project && histoclip run params/demo.yaml
"""
README = """# A HistoCLIP project

- `notebooks/` are executed by every run. Their parameters cells say what each parameter means; edit them freely.
- `params/` holds a file for each run. Copy `params/folder.yaml` for your own patches.
- `reports/` is written by runs; open `reports/index.html`.

```bash
histoclip check params/demo.yaml       # check parameters and data
histoclip run params/demo.yaml         # needs pip install 'histoclip[report,offline]'
histoclip run params/demo.yaml --draft # few resamples, no studies
jupyter lab notebooks/01_data.ipynb    # needs pip install 'histoclip[lab]'
```

`histoclip --help` lists all commands, data sets and encoders. HistoCLIP is for research, not for diagnosis.
"""
COPIED = ("notebooks/*.ipynb", "notebooks/*.py", "params/*.yaml")


@app.command(epilog=EXAMPLES)
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write to; created if needed.", metavar="DIR")],
    debug: Debug = False,
) -> None:
    """Write notebooks, parameter files and a short README to a folder.

    Nothing is overwritten: a folder that already holds one of these files is refused.
    """
    with told(debug, code=2):
        from histoclip_lib.runs.pipeline import find_notebooks
        from histoclip_lib.runs.record import LIBRARY

        folder, project = resolve(folder), find_notebooks(LIBRARY.parent).parent  # the library's own, not those here
        files = {
            path.relative_to(project): path.read_text(encoding="utf-8")
            for pattern in COPIED
            for path in sorted(project.glob(pattern))
        } | {Path("README.md"): README}
        if there := [str(name) for name in files if (folder / name).exists() or (folder / name).is_symlink()]:
            raise HistoCLIPError(
                f"{folder} already holds files that would be overwritten. Choose another folder.\n{bullet_list(there)}"
            )
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(folder / name, text)
        typer.echo(visible(folder.absolute()))
        say(messages(), f"{len(files)} files written. Next, in that folder: histoclip run params/demo.yaml")
