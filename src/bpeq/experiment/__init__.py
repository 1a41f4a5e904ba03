"""What each command does, and what a study builds on: configs, their parts, and the runner.

A study is a file with a function `run(config, runner, *, ...)`. A config names the file. All that a
study needs from here and from `bpeq.config` is public here:

* `Config`, `load_config`, `ConfigError`: typed settings. `config.error(key, value, remedy)` makes
  the error for a setting that the study refuses.
* `build`, `build_data`, `build_networks`, `build_optimizer`, `learner`, `seed_keys`: the parts that
  a config names, and the random keys of its seeds.
* `Runner`: runs a loop into the run folder, with rows, checkpoints and an early stop.
* `run`, `run_comparison`, `load_run`: they start whole runs inside a study and read finished runs.
"""

from bpeq.config.errors import ConfigError
from bpeq.config.loading import Config, load_config
from bpeq.config.networks import Network, build_networks, build_optimizer, learner
from bpeq.config.problem import Problem, build, build_data, seed_keys
from bpeq.experiment.compare import run_comparison
from bpeq.experiment.runner import Diverged, Interrupted, Progress, Runner
from bpeq.experiment.saved_run import LoadedRun, load_run
from bpeq.experiment.train import run, statistics

__all__ = [
    "Config",
    "ConfigError",
    "Diverged",
    "Interrupted",
    "LoadedRun",
    "Network",
    "Problem",
    "Progress",
    "Runner",
    "build",
    "build_data",
    "build_networks",
    "build_optimizer",
    "learner",
    "load_config",
    "load_run",
    "run",
    "run_comparison",
    "seed_keys",
    "statistics",
]
