"""The command line: one file for each command, in the order of `histoclip --help`."""

try:
    from histoclip_lib.cli import init, import_, check, run, table, show, publish, predict, encoders, model, cache  # noqa: F401, I001
    from histoclip_lib.cli.app import main
except ModuleNotFoundError as error:  # the library was installed without the extra `report`
    if error.name not in ("typer", "rich"):
        raise
    missing = error.name

    def main() -> None:
        """Say what to install."""
        raise SystemExit(f"histoclip: {missing} is not installed. The command needs pip install 'histoclip[report]'.")


__all__ = ["main"]
