"""The energy contract: whether an energy is what equilibrium propagation needs."""

from bpeq.analysis.energy_contract._check import EnergyContract, check_energy
from bpeq.analysis.energy_contract._subject import Finding

__all__ = ["EnergyContract", "Finding", "check_energy"]
