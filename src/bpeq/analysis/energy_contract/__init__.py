"""The energy contract: whether an energy is what equilibrium propagation needs."""

from bpeq.analysis.energy_contract._context import Finding
from bpeq.analysis.energy_contract._contract import EnergyContract, check_energy

__all__ = ["EnergyContract", "Finding", "check_energy"]
