"""The command lm_eval: what it refuses before the harness is imported. Its scores: tests/training/test_harness.py."""

import sys

import pytest

from jaxgpt import lm_eval
from jaxgpt.config import UserError


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--limit 0", "--limit=0: give a number"),
        ("--limit 2.5", "--limit=2.5"),
        ("--limit nan", "--limit=nan"),
        ("--num_fewshot -1", "--num_fewshot=-1"),
        ("--log_samples", "give --output_path"),
        ("--fewshot_as_multiturn", "needs --apply_chat_template"),
        ("--batch_sise 3", "unrecognized arguments"),
        ("", 'pip install "jaxgpt[lm_eval]"'),
    ],
)
def test_bad_flags_and_a_missing_package_are_one_line(flags, words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError) as error:
        lm_eval.main(["--workdir", str(tmp_path), "--tasks", "kings", *flags.split()])
    assert words in str(error.value)
    assert "\n" not in str(error.value)
