"""The command line that all commands share: flags, one-line errors, exit codes.

A command is a file at the top of the package with a `main(argv)`. It imports the rooms after it has read its arguments, so
that --help and a wrong flag answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

from ml_collections import ConfigDict

from jaxgpt.common import causes, config_files, jax_settings
from jaxgpt.common.files import cache_dir, expand
from jaxgpt.common.say import prepare as prepare_output
from jaxgpt.common.say import say, silence
from jaxgpt.config import Config, UserError, apply_overrides, first_line, from_config_dict, reference
from jaxgpt.config.metadata import LARGEST


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, "") and action.default is not False
        return super()._get_help_string(action) if has_default else action.help


class Parser(argparse.ArgumentParser):
    """The parser of a command. Its errors are one line, as everywhere else in jaxgpt."""

    def __init__(self, command: str | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _HelpFormatter)
        if command is not None:
            kwargs["prog"] = called(command)
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def called(command: str) -> str:
    """How a command is typed, in the form that was used: `jaxgpt train` or `python -m jaxgpt.train`."""
    console = Path(sys.argv[0]).stem in ("jaxgpt", "__main__")
    return f"jaxgpt {command}" if console else f"python -m jaxgpt.{command}"


def command_line(command: str, **flags: object) -> str:
    """A command with flags, to be shown: it runs as it is printed, also where a value has blanks or begins with a dash."""
    parts = called(command).split()
    for name, value in flags.items():
        parts += [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]
    return shlex.join(parts)


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run a command's main(argv) and exit with 0, 2 for an error that the user can fix, or 128 + n for signal n."""
    prepare_output()
    signal.signal(signal.SIGINT, _interrupt)
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()  # here, where an error has an exit code of its own
        gc.freeze()  # no last search for garbage among JAX's objects: the process ends in 0.1 s, not 0.5
        sys.exit(code)
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:  # `| head` has seen enough
        silence(sys.stdout)
        sys.exit(128 + 13)  # as if by SIGPIPE, which Windows does not have
    except OSError as error:
        _fail(causes.describe(error))
    except (MemoryError, RuntimeError) as error:
        if causes.system_error(error) is not None:  # a full disk while profiling, say
            _fail(causes.describe(error))
        if not causes.is_out_of_memory(error):
            raise
        _fail(
            f"out of memory ({first_line(error)}): lower the batch size (data.batch_size or --batch_size), "
            "model.context_length or the size of the model"
        )
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one does not interrupt the end
        sys.exit(128 + signal.SIGINT)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    """Ctrl-C: KeyboardInterrupt, so that what is open is closed; while modules are imported, the end of the process.

    An interrupted import ends in a traceback of its own or is taken for a missing package, and nothing is open yet.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(128 + signal.SIGINT)
        frame = frame.f_back
    raise KeyboardInterrupt


def _fail(message: str) -> NoReturn:
    say(f"error: {message}", sys.stderr)
    # The error is the last line, not Python's warnings of a save that was given up.
    warnings.simplefilter("ignore")
    sys.exit(2)


def step(text: str) -> int | str:
    """The value of a --step flag: a number, or `best`."""
    if text == "best":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a saved step's number or 'best'") from None


def path(text: str) -> Path:
    """The value of a flag that is a path: `type=cli.path`."""
    try:
        return expand(text)
    except UserError as error:  # argparse replaces the text of any other error
        raise argparse.ArgumentTypeError(str(error)) from None


def add_run_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The flags that name a run and one of its checkpoints."""
    parser.add_argument("--workdir", required=required, type=path, help="the run's folder")
    parser.add_argument("--step", type=step, help="a saved step or 'best'; default: the newest")


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """The flag for how a text becomes ids."""
    parser.add_argument(
        "--num_workers",
        type=int,
        default=0,
        help="processes that tokenize documents; the ids are the same for any number",
    )


def add_stop_flags(parser: argparse.ArgumentParser) -> None:
    """The flags for where a generated text ends."""
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end a text in front of this; may be given "
                        "several times")  # fmt: skip
    parser.add_argument("--stop_at_eot", action=argparse.BooleanOptionalAction, default=True, help="end a text at the "
                        "tokenizer's end of text, where it has one")  # fmt: skip


def check_at_least(least: int, args: argparse.Namespace, *names: str) -> None:
    """Raises UserError for a flag below `least` or of more than 32 bits; None means that a flag is not given."""
    for name in names:
        value = getattr(args, name, None)
        if value is None:
            continue
        if value < least:
            raise UserError(f"--{name}={value}: give {least} or more")
        if value > LARGEST[int]:
            raise UserError(f"--{name}={str(value)[:20]}: give at most {LARGEST[int]:,}")


class _HelpConfig(argparse.Action):
    """Prints the fields of the config and exits, as --help does."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, only: Any, option_string: Any = None
    ) -> NoReturn:
        print(reference.as_text(only))
        parser.exit()


def add_help_config(parser: argparse.ArgumentParser) -> None:
    """The flag that lists the fields of the config."""
    parser.add_argument(
        "--help_config", action=_HelpConfig, nargs="?", const="", default=argparse.SUPPRESS, metavar="NAME",
        help="list the fields of the config with their meaning: all, a group or one field, such as optim; then exit",
    )  # fmt: skip


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `processes.join`."""
    group = parser.add_argument_group("several processes")
    group.add_argument("--distributed", action="store_true", help="join the processes that SLURM, Open MPI or Kubernetes "
                       "started")  # fmt: skip
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where the first process listens; with the two below"
    )
    group.add_argument("--num_processes", type=int, help="how many processes make the run")
    group.add_argument("--process_id", type=int, help="which of them this one is, from 0")


def set_up_process(joins: bool = False, compiles: bool = False) -> None:
    """Prepare the process of a command, before JAX starts. Raises UserError for settings of JAX that do not work.

    joins: `processes.join` follows, which has to come before the devices. compiles: see `jax_settings.check`.
    """
    jax_settings.check(compiles)
    keep_freed_memory()
    if not compiles:  # what is compiled for another device can't be read back here
        _enable_compilation_cache()
    if not joins:
        jax_settings.check_platform()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel.

    XLA's CPU backend allocates the buffers of every step. If they are returned and fetched again page by page, a small
    model loses a third of its step time.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not Linux, or not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def _enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that a second start does not compile them again."""
    import jax

    # If the folder is full or can't be written, only the next start takes longer.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if jax.config.values["jax_compilation_cache_dir"] is None:  # else JAX_COMPILATION_CACHE_DIR is set
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def split_config_flags(argv: list[str]) -> tuple[str | None, dict[str, str], list[str]]:
    """Separate `--config FILE[:ARGUMENT]` and `--config.GROUP.FIELD VALUE` from the other arguments.

    Returns the file, the overrides by dotted name (the last one counts) and all other arguments. `=` or a space separates
    a flag from its value. The order does not matter.
    """
    file, overrides, rest = None, {}, []
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag != "--config" and not flag.startswith("--config."):
            rest.append(argument)
            continue
        if not equals:
            value = next(arguments, "--")
            if value.startswith("--"):
                raise UserError(f"{flag} needs a value: {flag}=VALUE")
        if flag == "--config":
            file = value
        else:
            overrides[flag.removeprefix("--config.")] = value
    return file, overrides, rest


def load_config_dict(file: str | Path) -> ConfigDict:
    """The ConfigDict of a config file's get_config(), for config files that start from another."""
    return load_config_file(str(file))[0]


def load_config_file(file: str) -> tuple[ConfigDict, ModuleType]:
    """The ConfigDict of a config file's get_config(), and the file as a module.

    `path.py:text` or `name:text` passes the text to get_config. Raises UserError.
    """
    name, argument = config_files.split_argument(file)
    path = config_files.find(name)
    try:
        spec = importlib.util.spec_from_file_location("jaxgpt_user_config", path)
        if spec is None or spec.loader is None:
            raise UserError(f"{path} is not a Python file: a config is a .py file with get_config()")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"{path} has no get_config(): it must return a ConfigDict")
        values = module.get_config(argument) if argument else module.get_config()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"config file {path} failed: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(values, ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(values).__name__}, not a ConfigDict")
    return values, module


def read_config(file: str | None, overrides: dict[str, str]) -> Config:
    """The checked Config of a config file and the command line's overrides. Raises UserError if no file is given."""
    if file is None:
        raise UserError("--config is missing: give a config file, such as --config configs/char.py")
    return from_config_dict(apply_overrides(load_config_dict(file), overrides))
