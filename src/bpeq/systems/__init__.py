"""Systems: states that relax, and the energies or forces that they follow."""

from bpeq.systems._from_energy import from_energy
from bpeq.systems._hopfield import hopfield

__all__ = ["from_energy", "hopfield"]
