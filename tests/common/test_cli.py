"""The command line that all commands share: config flags and config files, and the configs of this repository."""

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgpt.common import cli
from jaxgpt.config import Config
from tests.config.samples import message

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.py"))


@pytest.mark.parametrize(
    "argv, expected",
    [
        ([], (None, {}, [])),
        (["--config", "a.py"], ("a.py", {}, [])),
        (["--config=a.py:big"], ("a.py:big", {}, [])),
        (
            ["--config.model.d_model=8", "--workdir", "w", "--config", "a.py", "--config.optim.b1", "0.5"],
            ("a.py", {"model.d_model": "8", "optim.b1": "0.5"}, ["--workdir", "w"]),
        ),
        (["--config=a.py", "--config=b.py"], ("b.py", {}, [])),
        (["--config.train.seed=1", "--config.train.seed", "2"], (None, {"train.seed": "2"}, [])),
        (["--config.data.path=a=b.txt"], (None, {"data.path": "a=b.txt"}, [])),
        (["--config.train.sample_prompt="], (None, {"train.sample_prompt": ""}, [])),
        (["--config.optim.weight_decay", "-1"], (None, {"optim.weight_decay": "-1"}, [])),
        (["--configs", "x", "--help"], (None, {}, ["--configs", "x", "--help"])),
    ],
)
def test_config_flags_are_taken_out_of_the_arguments(argv, expected):
    assert cli.split_config_flags(argv) == expected


@pytest.mark.parametrize("flag", ["--config", "--config.model.d_model"])
def test_a_flag_without_its_value_is_refused(flag):
    assert message(cli.split_config_flags, ["--workdir", "w", flag]) == f"{flag} needs a value: {flag}=VALUE"


def config_file(folder: Path, body: str) -> str:
    path = folder / "a.py"
    path.write_text(f"from jaxgpt.config import default_config\n{body}\n", "utf-8")
    return str(path)


def test_a_config_file_gives_its_config_dict_and_overrides_come_after(tmp_path):
    file = config_file(
        tmp_path,
        """
def get_config(size="small"):
    config = default_config()
    config.model.d_model = {"small": 12, "a:b": 24}[size]
    return config""",
    )
    assert cli.load_config_dict(file).model.d_model == 12
    assert cli.load_config_dict(f"{file}:a:b").model.d_model == 24
    cfg = cli.read_config(file, {"model.num_layers": "2", "optim.b1": "0.5"})
    assert (cfg.model.d_model, cfg.model.num_layers, cfg.optim.b1) == (12, 2, 0.5)
    assert cli.read_config(file, {"model.d_model": "18"}).model.d_model == 18


@pytest.mark.parametrize(
    "body, words",
    [
        ("", "a.py has no get_config()"),
        ("def get_config(): return 3", "get_config() returned int, not a ConfigDict"),
        ("def get_config(): return {}", "get_config() returned dict, not a ConfigDict"),
        ("def get_config(): pass", "get_config() returned NoneType, not a ConfigDict"),
        ("def get_config(): return default_config().modle", "a.py failed: AttributeError: "),
        ("def get_config(): raise ValueError('first\\nsecond')", "a.py failed: ValueError: first"),
        ("def get_config(", "a.py failed: SyntaxError"),
        ("import no_such_module", "a.py failed: ModuleNotFoundError"),
    ],
)
def test_a_config_file_that_does_not_work_is_one_line(tmp_path, body, words):
    text = message(cli.load_config_dict, config_file(tmp_path, body))
    assert words in text and "\n" not in text


def test_a_file_that_is_not_a_config_is_refused(tmp_path):
    assert "no config file nowhere.py" in message(cli.load_config_dict, "nowhere.py")
    assert f"no config file {tmp_path}" in message(cli.load_config_dict, str(tmp_path))
    (tmp_path / "a.txt").write_text("")
    assert "is not a Python file" in message(cli.load_config_dict, str(tmp_path / "a.txt"))
    no_argument = config_file(tmp_path, "def get_config(): return default_config()")
    assert "failed: TypeError" in message(cli.load_config_dict, f"{no_argument}:big")


def test_without_a_config_the_command_says_so_in_one_line():
    done = subprocess.run([sys.executable, "-m", "jaxgpt.train"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --config is missing")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_is_valid_and_says_how_to_run_it(path):
    assert isinstance(cli.read_config(str(path), {}), Config)
    doc = importlib.util.spec_from_file_location("a_config", path).loader.get_source("a_config")
    assert f"--config configs/{path.relative_to(CONFIGS[0].parent)}" in doc


def test_the_repository_has_configs():
    assert CONFIGS


HOSTILE = ["-d", "a b", "it's", 'a"b', "$HOME", "*", "~", "a\nb", "--x", "", "é", "a\\b", "#"]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_command_that_is_shown_runs_as_it_is_printed(value):
    _, *parts = shlex.split(cli.command_line("generate", workdir=value, prompt=value))
    parser = cli.Parser()
    cli.add_run_flags(parser)
    parser.add_argument("--prompt")
    args = parser.parse_args(parts[parts.index("jaxgpt.generate") + 1 :] if "-m" in parts else parts[1:])
    assert args.prompt == value
    assert args.workdir == (Path.home() if value == "~" else Path(value))
