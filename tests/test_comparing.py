"""Claims that compare trained models: what they measure with, on cases whose answer is known."""

import dataclasses
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgpt
from experiments import comparing, matched_width, meaning, no_mask, positions, residual, width
from experiments.claim import Setting
from jaxgpt import config
from jaxgpt.model import parameters
from jaxgpt.model.gpt import GPT
from jaxgpt.training.evaluation import window_losses
from jaxgpt.vectors import tables
from jaxgpt.vectors.word_vectors import Vectors
from tests.models import TINY, random_params


def test_the_question_of_order_has_the_letter_that_came_first_for_an_answer():
    tokens_BT, answer_B = map(np.asarray, positions.questions(jax.random.key(0), 200))
    np.testing.assert_array_equal(np.sort(tokens_BT[:, :8], axis=1), np.tile(np.arange(8), (200, 1)))
    for order, asked, answer in zip(tokens_BT[:, :8].tolist(), tokens_BT[:, 8:], answer_B, strict=True):
        one, other = asked.tolist()
        assert one != other
        assert answer == min((one, other), key=order.index)
    assert 0.3 < (tokens_BT[:, 8] == answer_B).mean() < 0.7  # which is asked first says nothing


@pytest.mark.parametrize("position, depends", [("none", False), ("learned", True)])
def test_without_mask_and_positions_no_answer_depends_on_the_order(position, depends):
    cfg = positions.order_config(Setting("quick", 2), position, causal=False)
    params = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), random_params(cfg.model))
    assert (positions.order_effect(cfg, params) > 1e-4) == depends


def test_the_loss_of_prefixes_is_the_usual_one_under_a_mask_and_blind_to_what_comes_without_one():
    windows = np.random.default_rng(0).integers(0, 11, (3, 4)).astype(np.int32)
    params = random_params(TINY)
    usual = float(window_losses(GPT(TINY), params, windows).mean())
    assert no_mask.prefix_loss(GPT(TINY), params, windows, 1) == pytest.approx(usual, rel=1e-5)
    unmasked = GPT(dataclasses.replace(TINY, causal=False))
    seen = no_mask.prefix_loss(unmasked, params, windows, 2)
    assert seen != pytest.approx(float(window_losses(unmasked, params, windows).mean()), rel=1e-3)
    # By hand: prefixes of 1 and of 3 tokens, each by itself.
    losses = []
    for n in (1, 3):
        logits_BV = np.asarray(unmasked.apply({"params": params}, windows[:, :n])[:, -1], np.float64)
        right_B = logits_BV[np.arange(3), windows[:, n]]
        losses.append((np.log(np.exp(logits_BV).sum(axis=1)) - right_B).mean())
    assert seen == pytest.approx(np.mean(losses), rel=1e-5)


def test_text_is_continued_from_the_last_window():
    prompts = np.random.default_rng(0).integers(0, 11, (2, 8)).astype(np.int32)
    unmasked = GPT(dataclasses.replace(TINY, causal=False))
    params = random_params(TINY)
    written = no_mask.write(unmasked, params, prompts, 3, seed=0)
    assert written.shape == (2, 3)
    again = no_mask.write(unmasked, params, prompts, 2, seed=0)
    np.testing.assert_array_equal(written[:, :2], again)  # what comes later changes nothing


@pytest.mark.parametrize("embedding_dim", [4, 12])
def test_the_width_of_equal_parameters_is_the_nearest(embedding_dim):
    base = config.Config(model=dataclasses.replace(TINY, vocab_size=100, d_ff=None, context_length=8))

    def count(d_model: int, rows: int = embedding_dim) -> int:
        cfg = dataclasses.replace(base.model, d_model=d_model, embedding_dim=rows)
        return parameters.count_params(parameters.param_shapes(cfg))

    target = count(8, 8)
    found = matched_width.with_width(base, embedding_dim, target)
    errors = {width: abs(count(width) - target) for width in range(4, 33, 4)}
    assert errors[found] == min(errors.values())


def test_losses_between_evaluations_lie_on_a_line():
    assert width._at({0: 4.0, 10: 2.0, 20: 1.0}, 5) == 3.0
    assert width._at({0: 4.0, 10: 2.0, 20: 1.0}, 15) == 1.5


def test_letters_of_one_class_with_one_direction_are_distinguished():
    letters = list(string.ascii_lowercase + string.ascii_uppercase)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(len(letters), 64))
    aucs = {
        what: (meaning.vowel_auc, meaning.case_auc)[what == "case"](
            tables.Table("made", Vectors(letters, (noise + extra).astype(np.float32)))
        )
        for what, extra in {
            "vowels": 5 * np.array([[1 if c.lower() in "aeiou" else -1] for c in letters]),
            "case": np.tile(5 * rng.normal(size=(26, 64)), (2, 1)),
        }.items()
    }
    assert aucs["vowels"] > 0.99 and aucs["case"] > 0.99
    by_chance = tables.Table("random", Vectors(letters, noise.astype(np.float32)))
    assert abs(meaning.vowel_auc(by_chance) - 0.5) < 0.15
    assert abs(meaning.case_auc(by_chance) - 0.5) < 0.2


def test_gradient_norms_are_of_each_block():
    ids = np.random.default_rng(0).integers(0, 11, 200).astype(np.uint16)
    params = random_params(TINY)
    norms = residual.gradient_norms(TINY, params, ids)
    assert len(norms) == 2 and min(norms) > 0
    silent = {**params, "final_norm": jax.tree.map(jnp.zeros_like, params["final_norm"])}
    assert residual.gradient_norms(TINY, silent, ids) == [0.0, 0.0]


def test_every_variant_is_trained_with_every_seed_and_found_again(tmp_path):
    setting = Setting("quick", 2, tmp_path)
    base = comparing.base(setting)
    variants = {"free": {"optim.weight_decay": 0.1}, "held": {"optim.weight_decay": 0.5}}
    by_seed = [{"optim.learning_rate": 1e-2}, {"optim.learning_rate": 2e-2}]
    rows = comparing.train(setting, "test", base, variants, by_seed)
    assert list(rows) == ["free", "held"]
    for label, found in rows.items():
        assert [row.overrides["train.seed"] for row in found] == [0, 1]
        assert [row.overrides["optim.learning_rate"] for row in found] == [1e-2, 2e-2]
        cfg = jaxgpt.load(found[1].workdir).config
        assert cfg.optim.weight_decay == variants[label]["optim.weight_decay"] and cfg.train.seed == 1
        assert comparing.losses(found) == [comparing.curve(row.workdir)[3] for row in found]
    assert comparing.train(setting, "test", base, variants, by_seed) == rows
