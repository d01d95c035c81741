"""Presets: published shapes as configs."""

from jaxgpt import config
from jaxgpt.config import presets
from tests.config.samples import message


def test_presets_are_models_and_an_unknown_one_lists_them():
    for name, model in presets.PRESETS.items():
        values = config.default_config()
        values.model = presets.preset(name)
        assert config.from_config_dict(values).model == model
    text = message(presets.preset, "gpt5")
    assert "gpt5" in text and all(name in text for name in presets.PRESETS)


def test_a_preset_handed_out_is_a_copy():
    presets.preset("gpt2").d_model = 1
    assert presets.preset("gpt2").d_model == 768
