"""A random SAE folder is loaded and works on finite tokens, or is refused in one sentence that names it."""

import io
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save

from lib.sae import folders as sae_folders
from tests.fuzzing import JSON, Outcomes, fuzz

WEIGHTS = "sae_weights.safetensors"
D_MODEL, D_SAE, HOOK = 4, 6, "blocks.2.hook_resid_post"
OF_LATENTS = ("b_enc", "threshold", "b_gate", "r_mag", "b_mag")
SHAPES = {"W_enc": (D_MODEL, D_SAE), "W_dec": (D_SAE, D_MODEL), "b_dec": (D_MODEL,)}
SHAPES |= dict.fromkeys(OF_LATENTS, (D_SAE,))
BIASES = {
    "jumprelu": ["b_enc", "threshold"],
    "standard": ["b_enc"],
    "topk": ["b_enc"],
    "gated": ["b_gate", "r_mag", "b_mag"],
}
METADATA = {"sae_lens_version": "6.54.0", "model_name": "m", "hook_name": HOOK}
CFG = {
    "d_in": D_MODEL,
    "d_sae": D_SAE,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": False,
    "k": 2,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": METADATA,
}
ODD_METADATA = [
    {},
    {"hook_name": 1},
    {"hook_name": HOOK.replace("2", "3")},
    {"model_name": ["m"]},
    {"get": 1},
    {"sae_lens_version": []},
]
ODD_CFG = {
    "architecture": [
        *BIASES, "batchtopk", "abstopk", "matching_pursuit", "temporal", "transcoder", "skip_transcoder", "nope",
    ],
    "d_in": [0, -1, 3, 4.0, "4", True, 10**12, 10**30],
    "d_sae": [0, 1, 6.0, 10**12],
    "k": [0, 7, -1, 2.5, "1"],
    "dtype": ["float16", "int8", "x"],
    "device": ["cuda", "meta"],
    "apply_b_dec_to_input": [True, "yes"],
    "rescale_acts_by_decoder_norm": [True],
    "normalize_activations": [
        "layer_norm", "constant_norm_rescale", "expected_average_only_in", "covariance_whitening", "x",
    ],
    "reshape_activations": ["hook_z"],
    "sae_lens_version": ["5.0", 6, "x"],
    "metadata": [METADATA | odd for odd in ODD_METADATA],
}
ODD_SHAPES = [(), (0,), (1,), (6,), (4, 4), (0, 6), (4, 0), (6, 4), (4, 6), (6, 4, 1)]
ODD_VALUES = [np.nan, np.inf, -np.inf, 3e38, 1e30, -1e20, 0]
# Some of these dtypes are torch's, some NumPy's, and some are both's.
DTYPES = ["float16", "float64", "int8", "bool", "complex64", "bfloat16", "float8_e4m3fn", ">f4", "U3", "O"]
ARRAY_KINDS = ["no array", "more", "shape", "dtype", "value", "value"]
FILE_KINDS = ["cut", "bytes", "no file", "json"]
KINDS = [*6 * ["cfg"], "no key", *ARRAY_KINDS, *FILE_KINDS]
FITTING = (D_MODEL, HOOK, "m")  # d_in, hook_name and model_name of the activations
WANTED = [FITTING, (D_MODEL, HOOK, "n"), (D_MODEL, "blocks.5.hook_resid_post", "m"), (3, HOOK, "m")]


class Bomb:
    """Writes a file if it is unpickled."""

    def __reduce__(self):
        return open, ("TOUCHED", "w")


@st.composite
def folders(draw):
    """Files of a sound SAELens or Gemma Scope folder, with up to two keys, arrays or files made odd: bytes by name."""
    rng = np.random.default_rng(0)
    architecture = draw(st.sampled_from([*BIASES]))
    gemma = draw(st.integers(0, 3)) == 0
    names = ["W_enc", "W_dec", "b_dec", *BIASES["jumprelu" if gemma else architecture]]
    cfg = CFG | {"architecture": architecture}
    arrays = {name: rng.standard_normal(SHAPES[name], np.float32) for name in names}
    dtypes, raw = {}, {}
    for kind in draw(st.just([]) | st.lists(st.sampled_from(KINDS), min_size=1, max_size=2)):
        key = draw(st.sampled_from([*ODD_CFG]))
        name = draw(st.sampled_from(names))
        file = draw(st.sampled_from(["params.npz"] if gemma else ["cfg.json", WEIGHTS]))
        if kind == "cfg":
            cfg[key] = draw(st.sampled_from(ODD_CFG[key]) | st.sampled_from(ODD_CFG[key]) | JSON)
        elif kind == "no key":
            cfg.pop(key, None)
        elif kind == "no array":
            arrays.pop(name, None)
        elif kind == "more":
            arrays["more"] = np.zeros(3, np.float32)
        elif kind == "shape" and name in arrays:
            arrays[name] = np.resize(arrays[name], draw(st.sampled_from(ODD_SHAPES)))
        elif kind == "dtype":
            dtypes[name] = draw(st.sampled_from(DTYPES))
        elif kind == "value" and name in arrays:
            arrays[name].flat[:1] = draw(st.sampled_from(ODD_VALUES))
        else:
            replacements = {
                "cut": slice(0, draw(st.integers(0, 400))),
                "bytes": draw(st.binary(max_size=50)),
                "json": json.dumps(draw(JSON)).encode(),
            }
            raw[file] = replacements.get(kind)
    arrays = {name: cast(array, dtypes.get(name, "float32"), gemma) for name, array in arrays.items()}
    files = {"params.npz": npz(arrays)} if gemma else {"cfg.json": json.dumps(cfg).encode(), WEIGHTS: save(arrays)}
    for file, change in raw.items():
        files[file] = files[file][change] if isinstance(change, slice) else change
    return {file: data for file, data in files.items() if data is not None}


def cast(array, dtype, gemma):
    """An array of another dtype, as far as its format has it: torch's in safetensors, NumPy's and pickles in npz."""
    if not gemma:
        return torch.as_tensor(array).to(getattr(torch, dtype, torch.int64))
    if dtype == "O":
        return np.full(array.shape, Bomb(), dtype=object)
    return array.astype({"bfloat16": "i8", "float8_e4m3fn": "u1"}.get(dtype, dtype))


def npz(arrays):
    """Bytes of ``params.npz``."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@pytest.mark.filterwarnings("ignore:Casting complex values", "ignore:Initializing zero-element")
def test_sae_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcomes, fits, folder = Outcomes(), Outcomes(), tmp_path / "layer_2" / "sae"

    @example({"params.npz": npz({"W_enc": np.full((4, 6), Bomb(), dtype=object)})}, FITTING)
    @example({"params.npz": pickle.dumps(Bomb())}, FITTING)
    @fuzz(max_examples=600)
    @given(folders(), st.sampled_from(WANTED))
    def check(files, wanted):
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        sae = outcomes.judge(lambda: sae_folders.load(folder), str(folder))
        assert not (tmp_path / "TOUCHED").exists(), "a pickle was carried out"
        if sae is None:
            return
        fits.judge(lambda: sae_folders.check_fits(sae, *wanted), "d_in", "hook_name", "model_name")
        assert all(tensor.isfinite().all() for tensor in sae.state_dict().values())
        x = torch.randn(3, sae.cfg.d_in, generator=torch.Generator().manual_seed(0)) * 10
        latents = sae.encode(x)
        decoded = sae.decode(latents)
        latents = latents.to_dense() if latents.is_sparse else latents
        assert latents.shape == (3, sae.cfg.d_sae) and decoded.shape == x.shape
        assert latents.isfinite().all() and decoded.isfinite().all()

    check()
    outcomes.check_both()
    fits.check_both()
