import numpy as np
import pytest

from lib.texts import artefacts

TEXTS = ["Write a report on glaciers", "How do I repair an old bicycle", "Explain the rules of chess to somebody"]


@pytest.mark.parametrize("name", artefacts.ARTEFACTS)
def test_planting_changes_every_text_and_the_change_is_found(name):
    clean, planted = artefacts.plant(name, TEXTS, 0)
    for before, after in zip(clean, planted, strict=True):
        spans = artefacts.changed(before, after)
        assert before != after and spans and all(0 <= low < high <= len(after) for low, high in spans)
        kept = "".join(c for i, c in enumerate(after) if not any(low <= i < high for low, high in spans))
        assert artefacts.changed(before, kept) == []  # nothing new outside the spans
    assert artefacts.plant(name, TEXTS, 0) == (clean, planted)


def test_changed_characters_by_hand():
    assert artefacts.changed("Write a plan", "Write a plan?") == [(12, 13)]
    assert artefacts.changed("Write a plan", "Write a plna") == [(8, 12)]
    assert artefacts.changed("Write a plan", "Please write a plan") == [(0, 12)]
    assert artefacts.changed("a b c", "a b c") == []


def test_a_typo_keeps_the_first_letter_and_changes_the_length_by_one_at_most():
    rng = np.random.default_rng(0)
    for _ in range(50):
        word = artefacts._typo("bicycle", rng)
        assert word[0] == "b" and abs(len(word) - 7) <= 1


def test_the_fillings_vary_so_that_no_single_text_is_the_artefact():
    for name in ("trailing bracket", "length"):
        planted = artefacts.plant(name, ["Write a plan"] * 40, 0)[1]
        assert len(set(planted)) > 5


def test_unknown_artefact():
    with pytest.raises(ValueError, match="'emoji'; allowed are"):
        artefacts.plant("emoji", TEXTS, 0)
