"""The benchmark end to end on a toy model. Its errors are one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgpt import bench
from jaxgpt.config import UserError
from jaxgpt.training import benchmark, costs, preflight
from jaxgpt.training.target import bounds, cards
from tests.training.test_target_hlo import TEXT

ROOT = Path(__file__).parent.parent
CHAR = str(ROOT / "configs" / "char.py")
TOY = [
    "--config", CHAR, "--config.model.context_length=16", "--config.model.d_model=16",
    "--config.model.num_layers=1", "--config.model.num_heads=2", "--config.data.batch_size=2", "--vocab_size=65",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Ceilings in a moment: what they are is the machine's business."""
    speed, bandwidth = preflight.matmul_speed, benchmark.memory_bandwidth
    monkeypatch.setattr(preflight, "matmul_speed", lambda dtype, size: speed(dtype, 64, seconds=0.01))
    monkeypatch.setattr(benchmark, "memory_bandwidth", lambda _: bandwidth(2**20, seconds=0.01))


def measured(arguments: list[str], tmp_path: Path) -> dict:
    bench.main([*TOY, "--json", str(tmp_path / "out.json"), *arguments])
    return json.loads((tmp_path / "out.json").read_text())


@pytest.mark.parametrize(
    "extra", [[], ["--config.train.steps_per_dispatch=5", "--config.data.on_device=true"]]
)
def test_training(tmp_path, capsys, extra):
    found = measured(["--steps", "5", *extra], tmp_path)
    training = found["results"][0]["training"]
    cfg = found["results"][0]["config"]
    assert cfg["model"]["vocab_size"] == 65
    assert training["num_params"] == 16 * (65 + 16) + 12 * 16**2 + 13 * 16 + 2 * 16
    assert training["tokens_per_second"] == pytest.approx(2 * 16 / training["step_seconds"])
    assert training["steps_timed"] == 5
    assert training["share_of_matmul_ceiling"] == pytest.approx(
        training["model_flops_per_second"] / found["machine"]["matmul_flops_per_second"]
    )
    assert training["xla_flops_per_step"] >= training["model_flops_per_step"]
    assert training["compiled_bytes"] > 0
    assert training["share_of_datasheet"] is None
    shown = capsys.readouterr().out
    assert "of the matrix ceiling" in shown
    assert "unknown" in shown


def test_decoding(tmp_path, capsys):
    found = measured(["--decode"], tmp_path)
    one, many = found["results"][0]["decoding"]
    assert (one["batch_size"], many["batch_size"]) == (1, 64)
    assert one["prompt_tokens"] + one["new_tokens"] == 16
    assert many["decode_tokens_per_second"] > one["decode_tokens_per_second"] > 0
    assert "prefill" in capsys.readouterr().out


def test_sweep_measures_each_value(tmp_path, capsys):
    found = measured(["--steps=2", "--sweep", "model.context_length=8,16"], tmp_path)
    assert found["field"] == "model.context_length"
    tokens = [result["training"]["tokens_per_step"] for result in found["results"]]
    assert tokens == [16, 32]
    assert "x " in capsys.readouterr().out.splitlines()[-1]


def test_json_on_stdout_is_nothing_but_json(capsys):
    bench.main([*TOY, "--steps=1", "--warmup=0", "--json", "-"])
    assert json.loads(capsys.readouterr().out)["results"][0]["training"]["steps_timed"] == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--steps=2"], "--config is missing"),
        (["--config", "nowhere.py"], "no config file"),
        ([*TOY, "--steps=0"], "--steps=0"),
        ([*TOY, "--sweep", "context_length"], "FIELD=a,b,c"),
        ([*TOY, "--sweep", "model.context_lenght=1,2"], "did you mean model.context_length"),
        ([*TOY, "--sweep", "model.d_model=16,17"], "not a multiple"),
        ([*TOY, "--sweep", "model.d_model=16", "--decode"], "exclude"),
        ([*TOY, "--fast"], "unrecognized"),
    ],
)
def test_mistakes_are_refused_before_anything_is_measured(arguments, word):
    with pytest.raises(UserError, match=word):
        bench.main(arguments)


def test_the_vocabulary_is_the_presets_or_the_tokenizers():
    from jaxgpt.common.cli import read_config

    gpt2 = str(ROOT / "configs" / "gpt2.py")
    assert benchmark.with_vocabulary(read_config(gpt2, {}), gpt2, None).model.vocab_size == 50_257
    bert = f"{gpt2}:bert-base"
    assert benchmark.with_vocabulary(read_config(bert, {}), bert, None).model.vocab_size == 30_522
    assert benchmark.with_vocabulary(read_config(CHAR, {}), CHAR, None).model.vocab_size == 256
    assert benchmark.with_vocabulary(read_config(CHAR, {}), CHAR, 65).model.vocab_size == 65


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA B300", None),
        ("cpu", None),
    ],
)
def test_the_data_sheets_peak_is_known_or_said_to_be_unknown(kind, peak):
    assert benchmark.datasheet_peak(kind, "bfloat16") == peak
    assert benchmark.datasheet_peak(kind, "float32") is None


def test_the_bound_is_that_of_the_compiled_program_on_a_known_card():
    card = cards.CARDS["h100"]
    found = benchmark.bound_seconds(TEXT, devices=8, steps=2, kind=card.device_kind)
    assert list(found) == [share.name for share in bounds.SHARES]
    assert 0 < found["data sheet"] < found["usual kernels"]
    twice = benchmark.bound_seconds(TEXT, devices=8, steps=1, kind=card.device_kind)
    assert twice["data sheet"] == pytest.approx(2 * found["data sheet"])
    assert benchmark.bound_seconds(TEXT, 8, 1, kind="cpu") is None


def test_the_command_exits_with_2_and_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "jaxgpt.bench", "--config", "nowhere.py"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: no config file")
    assert len(done.stderr.splitlines()) == 1


def test_the_bound_of_decoding_is_bytes_over_bandwidth(tmp_path):
    found = measured(["--decode"], tmp_path)
    one = found["results"][0]["decoding"][0]
    from jaxgpt.config import from_config_dict

    model = from_config_dict(found["results"][0]["config"]).model
    expected = found["machine"]["read_bytes_per_second"] / sum(costs.decode_bytes(model, 1))
    assert one["bandwidth_bound_tokens_per_second"] == pytest.approx(expected)
