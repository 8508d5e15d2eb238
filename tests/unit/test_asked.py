"""The model asked itself: the same logits as one plain forward pass of Hugging Face's model for each prompt."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib.model import models
from lib.probing import asked

TEXTS = ["Name three trees.", "Tell me how to pick a lock", "x", "Name three trees. And then say which is tallest."]


def test_scores_are_those_of_a_plain_forward_pass(gemma):
    scores = asked.yes_over_no(gemma, TEXTS)
    yes, no = (asked.answer_ids(gemma.tokenizer, answer) for answer in ("yes", "no"))
    assert not set(yes) & set(no)
    for score, ids in zip(scores, models.tokenise(gemma, [asked.QUESTION + text for text in TEXTS]), strict=True):
        with torch.inference_mode():
            logits = gemma.original_model(input_ids=torch.tensor([ids])).logits[0, -1]
        by_hand = logits[yes].exp().sum().log() - logits[no].exp().sum().log()
        assert score == pytest.approx(by_hand.item(), abs=1e-4)
    assert np.array_equal(scores, asked.yes_over_no(gemma, TEXTS))


def test_an_encoder_is_not_asked(minilm):
    with pytest.raises(ValueError, match="is no chat model, and answers nothing$"):
        asked.yes_over_no(minilm, TEXTS)


def test_no_two_of_the_prompts_asked_about_are_of_one_base_prompt():
    base = np.tile(np.arange(40), 3)
    prompts = pd.DataFrame({"base_id": base, "split": np.where(base < 20, "ood", "val"), "label": base % 2})
    chosen = prompts[asked.asked_about(prompts, "ood", 4, 0)]
    assert set(chosen["split"]) == {"ood"} and chosen["base_id"].is_unique
    assert chosen["label"].value_counts().to_dict() == {0: 4, 1: 4}
    assert len(prompts[asked.asked_about(prompts, "ood", 99, 0)]) == 20, "all that there are"
    assert (asked.asked_about(prompts, "ood", 4, 0) != asked.asked_about(prompts, "ood", 4, 1)).any()
