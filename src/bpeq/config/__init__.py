"""Configs: from TOML to checked settings, and from settings to the parts of a run."""

from bpeq.config.errors import ConfigError
from bpeq.config.loading import Config, load_config
from bpeq.config.networks import Network, build_networks, build_optimizer, learner
from bpeq.config.parts import Part
from bpeq.config.problem import Problem, build, build_data, seed_keys

__all__ = [
    "Config",
    "ConfigError",
    "Network",
    "Part",
    "Problem",
    "build",
    "build_data",
    "build_networks",
    "build_optimizer",
    "learner",
    "load_config",
    "seed_keys",
]
