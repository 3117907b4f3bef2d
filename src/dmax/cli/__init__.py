"""The command line: parse, call, print."""

from dmax.cli.commands import app, main

__all__ = ["app", "main"]
