"""Names of places and models that mean the same, or nearly."""

import pytest

from lib.sae import names

AFTER_7 = [
    "blocks.7.hook_resid_post",
    "blocks.8.hook_resid_pre",
    "blocks.7.hook_out",
    "blocks.8.hook_in",
    "model.layers.7",
    "model.layers.7.output",
    "model.language_model.layers.7",
    "transformer.h.7",
    "gpt_neox.layers.7",
    "layers.7",
    "encoder.layer.7",
    "blocks.7",
]
ELSEWHERE = [
    "blocks.7.hook_resid_pre",
    "blocks.7.hook_resid_mid",
    "blocks.7.hook_mlp_out",
    "blocks.7.attn.hook_z",
    "model.layers.7.self_attn.o_proj.input",
    "model.layers.7.mlp",
    "hook_embed",
    "blocks.77.hook_resid_post",
    "",
]


@pytest.mark.parametrize("place", AFTER_7)
def test_a_place_has_many_names(place):
    assert names.blocks_before(place) == 8
    assert names.same_place(place, "blocks.7.hook_resid_post") and names.same_place(AFTER_7[1], place)


@pytest.mark.parametrize("place", ELSEWHERE)
def test_other_places_are_others(place):
    assert not names.same_place(place, "blocks.7.hook_resid_post")
    assert names.same_place(place, place)


def test_what_the_first_block_reads():
    assert names.blocks_before("blocks.0.hook_resid_pre") == 0


@pytest.mark.parametrize(
    "one, other, relation",
    [
        ("gpt2-small", "openai-community/gpt2", names.SAME),
        ("gemma-2-9b-it", "google/gemma-2-9b-it", names.SAME),
        ("google/gemma-2-9b-it", "unsloth/gemma-2-9b-it", names.SAME),
        ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B", names.SAME),
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", names.SAME),
        ("meta-llama/Llama-3.2-1B-Instruct", "models/Llama-3.2-1B-Instruct-Q4_K_M.gguf", names.SAME),
        ("google/gemma-2-9b-it", "/data/models/gemma-2-9b-it/", names.SAME),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", names.VARIANT),  # Llama Scope
        ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B", names.VARIANT),
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct", names.VARIANT),
        ("google/gemma-3-1b-pt", "google/gemma-3-1b-it", names.VARIANT),
        ("google/gemma-3-270m", "google/gemma-3-270m-it", names.VARIANT),
        ("gemma-2-9b", "google/gemma-2-9b-it", names.VARIANT),
        ("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.1", names.VARIANT),
        ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf", names.VARIANT),
        ("google/gemma-2-9b-it", "/data/models/mine", names.UNTOLD),
        ("google/gemma-2-9b-it", "../mine", names.UNTOLD),
        ("data/raw/tiny-gemma", "google/gemma-2-2b", names.UNTOLD),
        ("google/gemma-2-9b-it", "data/prompts", names.UNTOLD),  # a folder of the project
        ("google/gemma-2-9b-it", "mine.gguf", names.UNTOLD),
        ("gemma-2-9b", "google/gemma-2-2b-it", names.OTHER),
        ("google/gemma-2-2b", "google/gemma-3-2b", names.OTHER),
        ("meta-llama/Llama-3.1-8B", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", names.OTHER),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m", names.OTHER),
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Coder", names.OTHER),
        ("a\0b", "google/gemma-2-2b", names.OTHER),
    ],
)
def test_what_two_models_names_tell(one, other, relation):
    assert names.relation(one, other) == relation == names.relation(other, one)
