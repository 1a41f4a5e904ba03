"""The locality audit: what each weight's update takes, read off the rule's own program."""

from bpeq.locality._audit import Locality, audit_locality, weight_names
from bpeq.locality._rows import WeightRow

__all__ = ["Locality", "WeightRow", "audit_locality", "weight_names"]
