"""Config files are found by path, and the shipped ones by name from any folder."""

from pathlib import Path

import pytest

from jaxgpt.common import cli, config_files
from jaxgpt.config import Config, UserError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", config_files.shipped())
def test_every_shipped_config_loads_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(cli.read_config(name, {}), Config)


def test_the_shipped_configs_are_the_files_of_the_folder():
    files = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.py")}
    assert {f"{name}.py" for name in config_files.shipped()} == files
    assert {"char", "gpt2", "sweeps/char_lr"} <= config_files.shipped().keys()


@pytest.mark.parametrize("name", ["char", "configs/char.py", "configs/char"])
def test_a_shipped_config_has_these_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_files.find(name) == CONFIGS / "char.py"


def test_an_existing_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/char.py").write_text("")
    (tmp_path / "char").write_text("")
    assert config_files.find("configs/char.py") == Path("configs/char.py")
    assert config_files.find("char") == Path("char")


def test_an_argument_follows_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.read_config("gpt2:gpt2-medium", {}).model.d_model == 1024


@pytest.mark.parametrize("name", ["cahr", "configs/none.py", "char.py", "../configs/char.py", "", "sweeps"])
def test_an_unknown_name_gets_the_list_of_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        config_files.find(name)
    assert str(error.value).startswith(f"no config file {name}: give a file, or one of bpe, char, ")
    assert "sweeps/char_lr" in str(error.value)


def test_an_installed_package_has_its_own_configs(tmp_path, monkeypatch):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps/rates.py").write_text("")
    monkeypatch.setattr(config_files, "_INSTALLED", tmp_path)
    assert config_files.shipped() == {"sweeps/rates": tmp_path / "sweeps/rates.py"}


def test_a_file_whose_path_has_a_colon_comes_before_an_argument(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sw_12:30").mkdir()
    body = (
        "from jaxgpt.config import default_config\ndef get_config(size='4'):\n    config = default_config()\n"
        "    config.model.num_layers = int(size)\n    return config\n"
    )
    Path("sw_12:30/best.py").write_text(body, "utf-8")
    assert cli.read_config("sw_12:30/best.py", {}).model.num_layers == 4
    assert cli.read_config("sw_12:30/best.py:7", {}).model.num_layers == 7
