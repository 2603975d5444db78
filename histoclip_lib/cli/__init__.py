"""The command line: one file for each command."""

from histoclip_lib.cli.main import main

__all__ = ["main"]
