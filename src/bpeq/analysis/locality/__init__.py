"""The locality audit: what each weight's update needs, found in the traced program of the rule."""

from bpeq.analysis.locality._audit import audit_locality, weight_names
from bpeq.analysis.locality.tables import (
    COLUMNS,
    Locality,
    WeightRow,
    cells,
    markdown,
    notes,
    overall,
)

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
