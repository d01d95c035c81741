"""Compiling for a card that is not here: what is refused, in one line."""

import dataclasses

import pytest

from jaxgpt import train
from jaxgpt.config import Config, DataConfig, MeshConfig, ModelConfig, TrainConfig, UserError
from jaxgpt.training.target import cards, compile, fits
from tests.commands import CONFIG
from tests.small_runs import write_text

H100 = cards.CARDS["h100"]
SMALL = Config(
    model=ModelConfig(vocab_size=64, context_length=16, d_model=16, num_layers=1, num_heads=2),
    data=DataConfig(batch_size=8),
)


def refused(call, *arguments) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "flags, words",
    [
        (
            "--target h100",
            "--target=h100 compiles for a card that is not here, to report on it: add --dry_run",
        ),
        ("--dry_run --json", "--json belongs to a report on a card: add --dry_run --target=h100"),
        ("--price_per_hour 2", "--price_per_hour belongs to a report on a card"),
        ("--dry_run --target h100 --price_per_hour=-2", "--price_per_hour=-2: give a price of 0 or more"),
        ("--dry_run --target h10", "--target=h10: did you mean h100? choose one of h100, "),
    ],
)
def test_wrong_flags(flags, words, tmp_path, monkeypatch):
    write_text(tmp_path / "text.txt")
    (tmp_path / "config.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    assert refused(train.main, ["--config", "config.py", *flags.split()]).startswith(words)


@pytest.mark.parametrize(
    "versions, card, words",
    [
        ({}, "h100", '--target=h100 needs a compiler that is not installed, jax-cuda12-pjrt: pip install "jax-cuda12-pjrt=='),
        ({"jax-cuda12-pjrt": "0.4.1"}, "h100", "jax-cuda12-pjrt 0.4.1 does not match jaxlib "),
    ],
)  # fmt: skip
def test_the_compiler_is_asked_for(versions, card, words, monkeypatch):
    found = {"jaxlib": "0.10.2", **versions}
    monkeypatch.setattr(compile, "_version", found.get)
    monkeypatch.setattr(compile.metadata, "version", found.__getitem__)
    assert refused(compile.check_installed, cards.CARDS[card]).startswith(words)


def test_a_mesh_that_does_not_fit_the_cards():
    wrong = dataclasses.replace(SMALL, mesh=MeshConfig(data=2, fsdp=2))
    words = "mesh data 2 x fsdp 2 x tensor 1 is 4 devices, --target=h100x8 has 8: give --target=h100x4"
    assert refused(compile.mesh_sizes, wrong, cards.parse("h100x8")).startswith(words)
    odd = dataclasses.replace(SMALL, mesh=MeshConfig(tensor=3))
    assert "3 does not divide" in refused(compile.mesh_sizes, odd, cards.parse("h100x8"))
    assert compile.mesh_sizes(SMALL, cards.parse("h100x8")) == {"data": 8, "fsdp": 1, "tensor": 1}


def compiled(cfg: Config, memory: int, arguments: int = 10**9) -> compile.Compiled:
    target = cards.Target(H100, 1)
    return compile.Compiled(
        target, {"data": 1, "fsdp": 1, "tensor": 1}, "", arguments, 0, 0, memory - arguments, 0.0
    )


def test_too_much_memory_says_by_how_much_and_what_to_change():
    cfg = dataclasses.replace(SMALL, data=DataConfig(batch_size=64))
    GiB = 2**30
    fits.check(cfg, compiled(cfg, 70 * GiB))
    said = refused(fits.check, cfg, compiled(cfg, 100 * GiB))
    assert said == (
        "a step of 64 windows at once needs 100.0 GiB on each h100, which has 79.1 GiB and can use 75.1: 24.9 GiB too much; "
        "set train.grad_accumulation_steps=2 (32 windows at once, about 50.5 GiB)"
    )
    said = refused(fits.check, cfg, compiled(cfg, 100 * GiB, arguments=90 * GiB))
    assert "set train.remat=full, train.loss_chunk, more cards with --target=h100x2 and mesh.fsdp=2" in said


def test_the_most_windows_that_fit():
    cfg = dataclasses.replace(
        SMALL, data=DataConfig(batch_size=48), train=TrainConfig(grad_accumulation_steps=12)
    )
    sizes = {"data": 2, "fsdp": 1, "tensor": 1}
    assert fits.windows(cfg, sizes) == 2
    assert fits.choices(cfg, sizes) == {24: 1, 12: 2, 8: 3, 6: 4, 4: 6, 3: 8, 2: 12, 1: 24}
    assert fits.with_windows(cfg, sizes, 8).train.grad_accumulation_steps == 3
    line = fits.Line(fixed=10, slope=4)
    assert fits.largest(line, fits.choices(cfg, sizes), 45) == 8
    assert fits.largest(line, fits.choices(cfg, sizes), 13) is None
