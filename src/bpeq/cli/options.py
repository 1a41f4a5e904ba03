"""What the commands share: the typer app, options, functions that read them, and `say`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from bpeq.core.paths import user_path

if TYPE_CHECKING:
    from bpeq.config.loading import Config

app = typer.Typer(
    help="Train networks by backpropagation, equilibrium propagation and their kin, from configs.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

CommandError = cast(type[Exception], typer.BadParameter.__base__)
"""The base class of errors in the use of a command. Up to typer 0.25 it is a class of click."""


def expand_paths(value: Any) -> Any:
    """Expands `~` in the value of an option or argument. Each one that takes a path calls this.

    Args:
      value: a path, a list of paths, or None.

    Returns:
      The same with expanded paths.
    """
    if isinstance(value, list | tuple):
        return [user_path(path) for path in value]
    return None if value is None else user_path(value)


ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="a TOML config", callback=expand_paths)
]
RunFolder = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="the folder of a finished run", callback=expand_paths),
]
Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", callback=expand_paths)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a setting, such as rule.beta=0.1"),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="the run folder; runs/NAME if not given", callback=expand_paths),
]
SweepOut = Annotated[
    Path | None,
    typer.Option(
        "--out", help="the sweep's folder; runs/NAME-sweep if not given", callback=expand_paths
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--run",
        help="a run folder, for its weights; initial weights if not given",
        callback=expand_paths,
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="continue what --out holds; CONFIG may be the folder of a run"),
]
Seeds = Annotated[int | None, typer.Option("--seeds", help="initialisations trained side by side")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"bpeq {version('bpeq')}")
        raise typer.Exit


@app.callback()
def _options_of_all_commands(
    version: Annotated[
        bool,
        typer.Option("--version", help="show the version", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


def say(message: str, code: int) -> int:
    """Prints one line on stderr, after `bpeq: `.

    Args:
      message: the text. Line breaks become spaces.
      code: an exit code.

    Returns:
      `code`.
    """
    print("bpeq: " + " ".join(message.split()), file=sys.stderr)
    return code


def rule_names(rules: str) -> list[str]:
    """Splits the value of `--rules`.

    Args:
      rules: names or dotted paths, separated by commas.

    Returns:
      The names, at least one.

    Raises:
      ConfigError: there is no name, or a name occurs twice.
    """
    from bpeq.config.errors import ConfigError

    names = [name.strip() for name in rules.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise ConfigError("--rules", "", rules, "must be different rules, such as backprop,eqprop")
    return names


def load(
    path: Path, overrides: list[str] | None, seeds: int | None = None, resume: bool = False
) -> Config:
    """Loads the config of a command.

    Args:
      path: the config file.
      overrides: `key=value` texts of `--set`; None: no overrides.
      seeds: the number of seeds of `--seeds`; None: the config's own.
      resume: `path` may be the folder of a run, for the config of that run.

    Returns:
      The checked config.

    Raises:
      ConfigError: the config is wrong, or its file name cannot name a run folder.
    """
    from bpeq.config.errors import ConfigError
    from bpeq.config.loading import load_config
    from bpeq.experiment.saved_run import reload_config

    texts = [*(overrides or []), *([] if seeds is None else [f"seeds={seeds}"])]
    config = (reload_config if resume and path.is_dir() else load_config)(path, texts)
    if not config.name.strip("."):
        remedy = "its name must be more than dots: it names the run's folder"
        raise ConfigError(str(path), remedy=remedy)
    return config


def result_folder(out: Path | None, name: str, resume: bool = False) -> Path:
    """Chooses the folder for the results of a command.

    Args:
      out: the value of `--out`; None: a folder in `runs/`.
      name: the name of the folder in `runs/`. A new folder gets a number if the name is taken.
      resume: choose the newest existing folder of this name instead.

    Returns:
      The folder.
    """
    from bpeq.runs import run_folder

    place = run_folder.newest_taken if resume else run_folder.next_free
    return place(Path("runs"), name) if out is None else out
