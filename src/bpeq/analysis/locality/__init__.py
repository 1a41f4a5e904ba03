"""The locality audit: what each weight's update takes, read off the rule's own program."""

from bpeq.analysis.locality._audit import Locality, audit_locality, weight_names
from bpeq.analysis.locality._rows import WeightRow, overall
from bpeq.analysis.locality._words import COLUMNS, cells, markdown, notes

__all__ = [
    "COLUMNS",
    "Locality",
    "WeightRow",
    "audit_locality",
    "cells",
    "markdown",
    "notes",
    "overall",
    "weight_names",
]
