"""The command line: one file for each command, in the order of `histoclip --help`."""

from histoclip_lib.cli import init, check, run, table, show, encoders, cache  # noqa: F401, I001 - each registers its command
from histoclip_lib.cli.app import main

__all__ = ["main"]
