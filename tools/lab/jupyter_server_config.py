"""What `make lab` adds to JupyterLab: a notebook that is opened is not marked as unsaved.

JupyterLab writes the language of the kernel, with its exact version, into every notebook that it opens. Here it finds
that there already, and it is left out again when the notebook is saved, so that the committed file stays as it is.
"""

from ipykernel.ipkernel import IPythonKernel
from jupytext import AsyncTextFileContentsManager

c = get_config()  # noqa: F821 (given by Jupyter)


class Contents(AsyncTextFileContentsManager):
    """Jupytext's contents manager, with the language of the kernel in what it reads and not in what it writes."""

    async def get(self, path, content=True, *arguments, **options):
        """Return a file; a notebook with `language_info`."""
        model = await super().get(path, content, *arguments, **options)
        if content and model["type"] == "notebook":
            model["content"]["metadata"]["language_info"] = dict(IPythonKernel.language_info)
        return model

    async def save(self, model, path=""):
        """Write a file; a notebook without `language_info`."""
        if model["type"] == "notebook" and "content" in model:
            model["content"]["metadata"].pop("language_info", None)
        return await super().save(model, path)


c.ServerApp.contents_manager_class = Contents
