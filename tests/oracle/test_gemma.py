"""The tiny Gemma 2 beside plain Hugging Face computations, and a Gemma Scope SAE beside a forward written by hand."""

import functools

import numpy as np
import pytest
import torch
import transformers
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders, pretrained_saes_directory

from lib.model import activations, chat, forward, models, poolings, rollouts, shards
from lib.sae import folders, latents, splice
from tests.tiny_gemma import D_MODEL, D_SAE, LAYER

PROMPTS = [
    "Write a poem",
    "Tell me how a lighthouse works, and who keeps it",
    "Why?",
    "Name three ships that sail at night in winter",
]
SCOPE = f"gemma-scope/layer_{LAYER}/width_{D_SAE}/average_l0_10"


@pytest.fixture
def reference(tiny_gemma):
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_gemma).eval()


@torch.inference_mode()
def alone(reference, ids):
    return reference(torch.tensor([ids]), output_hidden_states=True).hidden_states


def test_hidden_states_positions_and_pooling_equal_hugging_faces(gemma, reference, tmp_path):
    names = poolings.with_positions([-1, -5, -1], -5)
    assert names == ("max", "mean", "fixed", "position -1")
    stores = {
        over: activations.harvest_pooled(
            gemma, {"model": "m"}, PROMPTS, [0, 1], tmp_path, poolings=names, token_layer=1, over=over
        )
        for over in ("turn", "sequence")
    }
    of_turn, pooled = (activations.load_pooled(store) for store in stores.values())
    of_turn_tokens = activations.prompt_tokens(gemma, {"model": "m"}, PROMPTS, 1, tmp_path)
    tokens = activations.prompt_tokens(gemma, {"model": "m"}, PROMPTS, 1, tmp_path, "sequence")
    assert len(list(tmp_path.glob("[!.]*"))) == 4, "one pass made the pooled store and the tokens"
    end_of_turn = gemma.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    for row, text in enumerate(PROMPTS):
        ids = reference_ids(gemma, text)
        for layer in (0, 1):
            hidden = alone(reference, ids)[layer + 1][0]
            seen = hidden[1:]  # all but BOS, which is the same in every prompt
            np.testing.assert_allclose(pooled[layer, "max"][row], seen.amax(0), atol=1e-4)
            np.testing.assert_allclose(pooled[layer, "mean"][row], seen.mean(0), atol=1e-4)
            end = ids.index(end_of_turn)
            np.testing.assert_allclose(pooled[layer, "fixed"][row], hidden[end], atol=1e-4)
            np.testing.assert_allclose(of_turn[layer, "position -1"][row], hidden[-1], atol=1e-4)
            np.testing.assert_allclose(of_turn[layer, "fixed"][row], hidden[end], atol=1e-4)
            first = len(chat.user_header(gemma.tokenizer))
            np.testing.assert_allclose(of_turn[layer, "mean"][row], hidden[first:end].mean(0), atol=1e-4)
            np.testing.assert_allclose(of_turn[layer, "max"][row], hidden[first:end].amax(0), atol=1e-4)
        start, stop = of_turn_tokens.starts[row : row + 2]
        torch.testing.assert_close(of_turn_tokens.activations[start:stop].float(), hidden[first:], atol=2e-2, rtol=1e-2)
        assert of_turn_tokens.in_turn[start:stop].sum() == end - first and of_turn_tokens.in_turn[start]
        own = tokens.activations[tokens.starts[row] : tokens.starts[row + 1]].float()
        torch.testing.assert_close(own, alone(reference, ids)[2][0, 1:], atol=2e-2, rtol=1e-2)
    sae = folders.load(gemma.tokenizer.name_or_path + "/" + SCOPE)
    fixed = latents.pool_latents(sae, tokens)["fixed"].toarray()
    at_end = torch.stack([tokens.activations[stop - 5] for stop in tokens.starts[1:]]).float()
    np.testing.assert_allclose(fixed, sae.encode(at_end).detach(), atol=1e-3)


def reference_ids(gemma, text):
    turns = [{"role": "user", "content": text}]
    return gemma.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


def test_left_and_right_padding_give_equal_results(gemma):
    token_ids = models.tokenise(gemma, PROMPTS)
    pooled = []
    for left in (False, True):
        ids, mask = forward.padded(token_ids, gemma.tokenizer.pad_token_id, left=left)
        resid = forward.resid_post_at(gemma, ids, mask, [1])[1]
        counted = mask.bool() & models.seeing(gemma, ids)
        pooled.append({pooling: poolings.pool(resid, counted, pooling, -5) for pooling in poolings.POOLINGS})
    for pooling in poolings.POOLINGS:
        torch.testing.assert_close(pooled[0][pooling], pooled[1][pooling], atol=1e-4, rtol=1e-4)


def test_training_tokens_hold_neither_bos_nor_turn_markers(gemma, tmp_path):
    ids = models.split_tokens(gemma, ["User: tell me of ships\n\nAssistant: they sail"] * 3, 16)
    store = activations.harvest_tokens(gemma, {"model": "m"}, "h", ids, 1, tmp_path, special=False)
    kept = torch.cat([shard["token_id"] for shard in shards.read_all(store)]).unique().tolist()
    strings = set(gemma.tokenizer.convert_ids_to_tokens(kept))
    assert not strings & {"<bos>", "<start_of_turn>", "<end_of_turn>", "<pad>"} and "user" in strings


def test_a_gemma_scope_npz_equals_a_hand_written_forward(tiny_gemma):
    sae = folders.load(tiny_gemma / SCOPE)
    with np.load(tiny_gemma / SCOPE / "params.npz") as file:
        w = {name: torch.from_numpy(file[name]) for name in file}
    assert w["W_enc"].shape == (D_MODEL, D_SAE) and sae.cfg.metadata.hook_name == f"blocks.{LAYER}.hook_resid_post"
    x = 3 * torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(0))
    pre = x @ w["W_enc"] + w["b_enc"]
    by_hand = torch.where(pre > w["threshold"], pre, 0.0)
    torch.testing.assert_close(sae.encode(x), by_hand, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(x), by_hand @ w["W_dec"] + w["b_dec"], atol=1e-5, rtol=1e-5)
    assert (by_hand > 0).any() and len(folders.identity(tiny_gemma / SCOPE)) == 64


def test_the_registrys_loader_reads_the_same_file(tiny_gemma, tmp_path, monkeypatch):
    """``release:sae_id`` goes through SAELens' loader for Gemma Scope; here the hub's cache holds the small file."""
    release, sae_id = "gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82"
    commit = "0" * 40
    snapshot = tmp_path / "models--google--gemma-scope-2b-pt-res" / "snapshots" / commit / sae_id
    snapshot.mkdir(parents=True)
    (snapshot / "params.npz").write_bytes((tiny_gemma / SCOPE / "params.npz").read_bytes())
    (tmp_path / "models--google--gemma-scope-2b-pt-res" / "refs").mkdir()
    (tmp_path / "models--google--gemma-scope-2b-pt-res" / "refs" / "main").write_text(commit)
    known = pretrained_saes_directory.get_pretrained_saes_directory()[release]
    monkeypatch.setattr(known, "config_overrides", {"d_in": D_MODEL, "d_sae": D_SAE})
    monkeypatch.setitem(known.saes_map, sae_id, sae_id)
    download = pretrained_sae_loaders.hf_hub_download
    cached = functools.partial(download, cache_dir=tmp_path, local_files_only=True)
    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", cached)
    sae = folders.load(f"{release}:{sae_id}")
    assert isinstance(sae, SAE) and not sae.cfg.apply_b_dec_to_input
    assert sae.cfg.metadata.hook_name == "blocks.12.hook_resid_post"
    ours, x = folders.load(tiny_gemma / SCOPE), torch.randn(9, D_MODEL, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in sae.state_dict().items())
    torch.testing.assert_close(sae.encode(x), ours.encode(x), atol=1e-5, rtol=1e-5)
    message = "blocks.12.hook_resid_post', the activations are of 'blocks.1.hook_resid_post'"
    with pytest.raises(ValueError, match=message):
        folders.check_fits(sae, D_MODEL, "blocks.1.hook_resid_post")


def test_spliced_losses_equal_a_plain_hook_on_hugging_faces_model(gemma, reference, tiny_gemma):
    sae = folders.load(tiny_gemma / SCOPE)
    texts = ["User: tell me of ships\n\nAssistant: they sail at night", "a lighthouse keeper"]
    token_ids = models.split_tokens(gemma, texts, 64)
    special = models.special_ids(gemma)

    def by_hand(ids, change):
        plain = ~torch.isin(torch.tensor(ids), special)

        def hook(module, args, output):
            resid = output[0] if isinstance(output, tuple) else output
            new = torch.where(plain[None, :, None], change(resid), resid)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = reference.model.layers[LAYER].register_forward_hook(hook) if change else None
        with torch.inference_mode():
            logits = reference(torch.tensor([ids])).logits[0]
        if handle:
            handle.remove()
        each = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
        return each[plain[1:]].sum().item()

    sequences = splice.Sequences(gemma, token_ids, LAYER)
    for change, expected in ((None, None), (splice.reconstruction(sae), sae), (torch.zeros_like, torch.zeros_like)):
        by_hand_of_change = [by_hand(ids, expected) for ids in token_ids]
        np.testing.assert_allclose(sequences.losses(change), by_hand_of_change, rtol=1e-4)
    assert sequences.tokens.tolist() == [sum(token not in special for token in ids[1:]) for ids in token_ids]
    with torch.inference_mode():
        ids = token_ids[1]  # no turn tokens: Hugging Face's own loss
        loss = reference(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    assert splice.Sequences(gemma, [ids], LAYER).losses()[0] / (len(ids) - 1) == pytest.approx(loss, rel=1e-4)


def test_greedy_rollouts_equal_generate_on_each_prompt_alone(gemma, reference, tmp_path):
    generated = rollouts.generate(gemma, {"model": "m"}, PROMPTS, tmp_path, 12, temperature=0.0)
    ends = [gemma.tokenizer.eos_token_id, gemma.tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": ends, "pad_token_id": 0}
    for text, response in zip(PROMPTS, generated["response"], strict=True):
        ids = torch.tensor([reference_ids(gemma, text)])
        sequence = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)[0]
        new = sequence[ids.shape[1] :]
        assert response == gemma.tokenizer.decode(new, skip_special_tokens=True).strip()
