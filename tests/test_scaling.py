"""The command: a law from the folder of a sweep, and what it refuses."""

import dataclasses
import json
import math

import numpy as np
import pytest

from jaxgpt import scaling
from jaxgpt.config import Config, UserError, to_json
from jaxgpt.sweeps import scaling_law
from jaxgpt.sweeps.members import Sweep
from jaxgpt.sweeps.scaling_law import Law, Point
from tests.errors import one_line

TRUE = Law(1.2, 60.0, 400.0, 0.45, 0.4)
POINTS = [Point(n, d, TRUE.loss(n, d)) for n in (1e4, 1e5, 1e6) for d in (1e6, 1e7, 1e8)]


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    folder.mkdir()
    stored = {"base": to_json(Config()), "members": [{"model.d_model": 12}, {"optim.b1": 0.8}]}
    (folder / "sweep.json").write_text(json.dumps(stored))
    return folder


def test_a_law_its_predictions_and_budgets(sweep, monkeypatch, capsys):
    monkeypatch.setattr(scaling_law, "points_of", lambda found: POINTS if isinstance(found, Sweep) else [])
    command = ["fit", "--sweep", str(sweep), "--predict", "1e7,1e9", "--budget", "6e15"]
    scaling.main([*command, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["law"]["alpha"][0] == pytest.approx(0.45, rel=1e-2)
    assert found["predicted"][0]["loss"][0] == pytest.approx(TRUE.loss(1e7, 1e9), rel=1e-3)
    assert found["budgets"][0]["parameters"] * found["budgets"][0]["tokens"] == pytest.approx(1e15)
    scaling.main(command)
    said = capsys.readouterr().out
    assert "9 sizes and lengths" in said and "1e+07 parameters, 1e+09 tokens: loss" in said


def test_the_search_ends_at_the_same_law_wherever_it_starts():
    rng = np.random.default_rng(0)
    noisy = [dataclasses.replace(p, loss=p.loss * math.exp(rng.normal(0, 0.02))) for p in POINTS]
    no_floor = [dataclasses.replace(p, loss=p.loss - 1.2) for p in noisy]  # E ends at its bound
    for points in (noisy, no_floor):
        law = scaling_law.fit_law(points)
        for factor in (1.02, 0.95):
            near = dataclasses.replace(law, size_factor=law.size_factor * factor, beta=law.beta / factor)
            again = scaling_law.fit_law(points, near)
            assert dataclasses.astuple(again) == pytest.approx(dataclasses.astuple(law), rel=1e-10)


def test_what_can_not_be_fitted_is_one_line(sweep, tmp_path):
    for arguments, words in (
        (["fit", "--sweep", str(tmp_path)], r"not the folder of a sweep"),
        (["fit", "--sweep", str(sweep)], r"the members differ in optim\.b1 too"),
        (["fit", "--sweep", str(sweep), "--predict", "1e8"], r"--predict=1e8: give parameters and tokens"),
        (["fit", "--sweep", str(sweep), "--predict=-1,2"], r"above 0"),
        (["fit", "--sweep", str(sweep), "--budget", "0"], r"--budget=0"),
    ):
        with pytest.raises(UserError, match=words) as error:
            scaling.main(arguments)
        one_line(error)
