"""The command line: one file for each command, in the order of `histoclip --help`."""

from histoclip_lib.cli import init, import_, check, run, table, show, cache  # noqa: F401, I001 - each registers its command
from histoclip_lib.cli.app import main

__all__ = ["main"]
