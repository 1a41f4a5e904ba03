"""Systems: states that relax, and the energies or forces that they follow."""

from bpeq.systems._from_functions import from_energy, from_field
from bpeq.systems._hopfield import hopfield
from bpeq.systems._predictive import predictive
from bpeq.systems._resistive import resistive

__all__ = ["from_energy", "from_field", "hopfield", "predictive", "resistive"]
