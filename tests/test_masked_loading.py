"""Masked models that are refused, and those made from scratch."""

from __future__ import annotations

import pytest
from masked_fixtures import make_masked_folder, make_model, make_tokenizer, planted, task_of
from model_fixtures import CORPUS, make_model_folder
from transformers import BertConfig, BertForSequenceClassification

from gencls_core.errors import ModelError
from gencls_core.masked_loading import load_masked_lm, masked_tokenizer_digest
from gencls_core.model_source import ResolvedModel
from gencls_core.models import load_causal_lm
from gencls_core.objectives.masked import MaskedObjective
from gencls_core.scratch import PRESETS, build_scratch_model, scratch_preset


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> ResolvedModel:
    return make_masked_folder(tmp_path_factory.mktemp("bert"))


def refused(resolved: ResolvedModel) -> str:
    with pytest.raises(ModelError) as error:
        load_masked_lm(resolved)
    return str(error.value)


def test_a_causal_model_is_refused(tmp_path):
    message = refused(ResolvedModel.of_folder("my-gpt2", make_model_folder(tmp_path)))
    assert message.startswith("my-gpt2: not a masked language model\n  found: gpt2 (GPT2LMHead")
    assert "--masked-model roberta-base" in message


def test_a_model_without_its_head_is_refused(base, tmp_path):
    tokenizer = make_tokenizer("bert")
    classifier = BertForSequenceClassification(BertConfig.from_pretrained(base.path))
    for model in (make_model("bert", tokenizer).bert, classifier):
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        message = refused(ResolvedModel.of_folder("headless", tmp_path))
        assert "draw missing weights at random" in message
        assert "cls.predictions" in message.splitlines()[1]
        assert "saved as a masked language model" in message


def test_a_tokenizer_without_a_mask_token_is_refused(base, tmp_path):
    make_model("bert", make_tokenizer("bert")).save_pretrained(tmp_path)
    tokenizer = make_tokenizer("bert")
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    assert "no mask token" in refused(ResolvedModel.of_folder("maskless", tmp_path))


def test_weights_that_are_pickled_or_cut_short_are_refused(base, tmp_path):
    for name in base.files:
        (tmp_path / name).write_bytes((base.local() / name).read_bytes())
    resolved = ResolvedModel.of_folder("cut", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "weights in model.safetensors" in refused(resolved)
    weights.rename(tmp_path / "pytorch_model.bin")
    assert "weights in model.safetensors" in refused(resolved)
    with pytest.raises(ModelError, match="no safetensors weights"):
        ResolvedModel.of_folder("pickled", tmp_path)


# --- made from scratch


def test_models_made_from_scratch(tmp_path):
    texts = [*planted(30, seed=0), *CORPUS]
    places = {name: tmp_path / name for name in ("masked-tiny", "tiny")}
    bases = {}
    for name, place in places.items():
        build_scratch_model(f"scratch:{name}", iter(texts), 0, place)
        bases[name] = ResolvedModel.of_staged(f"scratch:{name}", place)
        assert bases[name] is not None
    lm = load_masked_lm(bases["masked-tiny"])
    assert lm.context == PRESETS["masked-tiny"].context
    assert lm.vocabulary == len(lm.tokenizer) <= PRESETS["masked-tiny"].vocabulary
    around = lm.tokenizer.convert_ids_to_tokens([*lm.prefix, *lm.suffix, lm.mask_id])
    assert around == ["<s>", "</s>", "<mask>"]
    for text, ids in zip(texts, lm.encode(texts), strict=True):
        assert lm.tokenizer.decode(ids) == text
    # Saved once more, as training does, it is the same tokenizer.
    task = task_of(bases["masked-tiny"], tmp_path, texts=texts)
    objective = MaskedObjective.of(task)
    digest = objective.save(tmp_path / "saved")
    again = load_masked_lm(ResolvedModel.of_folder("saved", tmp_path / "saved"))
    assert digest == masked_tokenizer_digest(lm) == masked_tokenizer_digest(again)
    assert load_causal_lm(bases["tiny"]).context == PRESETS["tiny"].context
    with pytest.raises(ModelError, match="not a masked"):
        load_masked_lm(bases["tiny"])
    with pytest.raises(ModelError, match="not a causal"):
        load_causal_lm(bases["masked-tiny"])


def test_presets_have_a_kind():
    for name in PRESETS:
        kind = scratch_preset(f"scratch:{name}").kind
        assert kind == ("masked" if name.startswith("masked") else "causal")
        assert scratch_preset(f"scratch:{name}", kind) == PRESETS[name]
    with pytest.raises(ModelError) as error:
        scratch_preset("scratch:tiny", "masked")
    assert str(error.value) == (
        "scratch:tiny: not a masked language model\n  found: a causal one\n"
        "  expected: scratch:masked-tiny, scratch:masked-small\n"
        "  remedy: causal models go with --model, masked ones with --masked-model"
    )
    with pytest.raises(ModelError, match=r"not a causal[^$]*scratch:tiny, scratch:small"):
        scratch_preset("scratch:masked-small", "causal")
    with pytest.raises(ModelError, match=r"no such preset[^$]*scratch:masked-tiny"):
        scratch_preset("scratch:huge")
