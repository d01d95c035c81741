"""The tour runs from top to bottom on a small run."""

import re
import runpy
from pathlib import Path

import pytest

from jaxgpt.training import loop
from tests.small_runs import small_config, write_text

TOUR = Path(__file__).parents[1] / "examples" / "tour.py"


def test_every_cell_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path / "cache"))
    loop.train(small_config(write_text(tmp_path / "text.txt"), train__num_steps=8), tmp_path / "run")
    for name, value in {"TOUR_RUN": tmp_path / "run", "TOUR_OUT": tmp_path / "out", "TOUR_STEPS": 6}.items():
        monkeypatch.setenv(name, str(value))
    found = runpy.run_path(str(TOUR))
    assert found["logits_BTV"].shape == (8, 16, found["cfg"].vocab_size)
    assert len(found["losses"]) == 6 and (tmp_path / "out" / "tour.png").stat().st_size > 1000
    assert "hurts most" in capsys.readouterr().out


def test_cells_are_in_percent_format():
    cells = re.findall(r"^# %%(.*)$", TOUR.read_text(), re.M)
    assert set(cells) == {"", " [markdown]"} and len(cells) >= 10
