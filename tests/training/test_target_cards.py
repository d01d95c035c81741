"""The table of cards, and the names of targets."""

import pytest

from jaxgpt.config import UserError
from jaxgpt.training.target import cards


def test_names_of_targets():
    assert (cards.parse("h100").card.name, cards.parse("H100x8").count) == ("h100", 8)
    assert cards.parse("rtx4090").count == 1 and str(cards.parse("rtx4090x2")) == "rtx4090x2"


@pytest.mark.parametrize(
    "text, words",
    [
        ("h10", "did you mean h100? choose one of h100, "),
        ("cray", "--target=cray: choose one of h100, "),
        ("h100x0", "give a number of cards from 1 to 1024, such as h100x8"),
        ("h100xmany", "give a number of cards"),
        ("v5ex3", "TPUs come as 1, 4, 8, 16, such as v5ex4"),
        ("", "choose one of"),
    ],
)
def test_other_names_get_one_line(text, words):
    with pytest.raises(UserError) as error:
        cards.parse(text)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_speeds_have_the_right_size():
    """A unit or a column that is confused is off by more than this."""
    for card in cards.CARDS.values():
        assert cards.of_device(card.device_kind) is card
        if card.is_tpu:
            continue
        assert 20 * 2**30 < card.memory < 200 * 2**30
        assert 40 < card.bf16 / card.bandwidth < 500  # operations for a byte
        assert 1.9 < card.bf16 / card.tf32 < 2.1
        # Two operations of each unit in each cycle.
        units = cards._LIMITS[card.capability][3]
        assert card.f32 == pytest.approx(2 * card.cores * units * card.clock * 1e9, rel=0.2)
