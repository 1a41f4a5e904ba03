"""The command line."""

from bpeq.cli.entry import main, script

__all__ = ["main", "script"]
