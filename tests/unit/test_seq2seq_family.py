"""Sequence-to-sequence models: the first decoder step, the likelihood of answers, prompts."""

import string
from copy import deepcopy

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

import fusion_tinting as ft
from fusion_tinting.families import causal_lm, texts
from fusion_tinting.families.seq2seq import (
    NO_TOKEN,
    AnsweringModel,
    answers,
    decoder_blocks,
    load,
    prompts,
    with_answers,
)
from fusion_tinting.method.task_vectors import TaskVectors

CLASSES = {"input_text": "Is '{text}' like '{other}'?", "target_text": {"0": "no", "1": "yes"}}
RATED = {"input_text": "Rate '{text}'.", "target_text": "{:.1f}"}


def t5(seed: int = 0) -> T5ForConditionalGeneration:
    """With an LM head that is no copy of the embeddings, as Flan-T5's."""
    torch.manual_seed(seed)
    size = {"d_model": 12, "d_kv": 6, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=140, decoder_start_token_id=0, tie_word_embeddings=False, **size)
    )
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model.eval()


def bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    size = {
        "d_model": 12,
        "encoder_layers": 3,
        "decoder_layers": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return BartForConditionalGeneration(BartConfig(vocab_size=140, init_std=0.5, **size, **heads)).eval()


def fine_tuned(model, seed: int):
    torch.manual_seed(seed)
    expert = deepcopy(model)
    for parameter in expert.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return expert


@pytest.fixture(scope="module")
def tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in string.ascii_letters + string.digits + string.punctuation]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=64)


def inputs() -> dict:
    ids = torch.tensor([[9, 8, 7, 1], [6, 5, 1, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@torch.no_grad()
@pytest.mark.parametrize("make", [t5, bart])
def test_the_logits_are_those_of_the_first_generated_token(make):
    model = make()
    start = torch.full((2, 1), model.config.decoder_start_token_id)
    said = model(**inputs(), decoder_input_ids=start).logits[:, 0]
    torch.testing.assert_close(AnsweringModel(model)(**inputs()), said, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("make", [t5, bart])
def test_an_answers_likelihood_is_its_loss_and_does_not_depend_on_longer_ones(make):
    model = make()
    among = torch.tensor([[9, 1, NO_TOKEN, NO_TOKEN], [9, 12, 13, 1], [1, NO_TOKEN, NO_TOKEN, NO_TOKEN]])
    found = AnsweringModel(model)(**inputs(), answers=among)
    assert found.shape == (2, 3)
    for row in range(2):
        one = {name: value[row : row + 1] for name, value in inputs().items()}
        for place, answer in enumerate(among):
            labels = answer[answer != NO_TOKEN][None]
            expected = -model(**one, labels=labels).loss * labels.numel()
            torch.testing.assert_close(found[row, place], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_first_step_is_the_likelihood_of_answers_of_one_token():
    model = AnsweringModel(t5())
    every = model(**inputs(), answers=torch.arange(140)[:, None])
    torch.testing.assert_close(every, model(**inputs()).log_softmax(-1), rtol=0, atol=1e-5)


def test_prompts_are_filled_and_a_missing_column_is_named():
    data = Dataset.from_dict({"other": ["a {b}", "c"], "text": ["d", "e's"], "label": [0, 1]})
    assert prompts(CLASSES, data, "the data") == ["Is 'd' like 'a {b}'?", "Is 'e's' like 'c'?"]
    with pytest.raises(ValueError, match=r"of the data `other`.*`text`, `label`"):
        prompts(CLASSES, data.remove_columns("other"), "the data")


def test_answers_mean_classes_or_ratings():
    assert answers(CLASSES) == {"no": 0, "yes": 1}
    ratings = answers(RATED)
    assert len(ratings) == 51
    assert all(float(answer) == rating for answer, rating in ratings.items())
    assert list(ratings)[::25] == ["0.0", "2.5", "5.0"]


def test_batches_hold_the_answers_and_all_of_them_must_be_told_apart(tokenizer):
    asked = texts.tokenized(tokenizer, [["ab", "c"]], 64)
    (batch,) = with_answers(asked, tokenizer, ["no", "yes"]).batches([[0, 1]])
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["answers"].tolist()[0][-1] == NO_TOKEN
    assert [tokenizer.decode([t for t in a if t != NO_TOKEN]) for a in batch["answers"].tolist()] == [
        "no</s>", "yes</s>",
    ]  # fmt: skip
    blind = T5Tokenizer(extra_ids=0)
    with pytest.raises(ValueError, match=r"cannot tell the answers \['no', 'yes'\] apart"):
        with_answers(asked, blind, ["no", "yes"])


@pytest.mark.parametrize(
    ("make", "blocks"), [(t5, "model.decoder.block"), (bart, "model.model.decoder.layers")]
)
def test_the_blocks_are_the_decoders(make, blocks):
    model = make()
    assert decoder_blocks(model) == [f"{blocks}.0", f"{blocks}.1"]
    assert causal_lm.head_name(model) == "model.lm_head"


@pytest.mark.parametrize("layer", ["model.lm_head", "model.decoder.block.1"])
def test_a_tint_of_an_untied_head_or_a_block(tokenizer, tmp_path, layer):
    base = t5()
    experts = {f"task{seed}": AnsweringModel(fine_tuned(base, seed)) for seed in (1, 2)}
    asked = {task: texts.tokenized(tokenizer, [[c * 3 for c in "abcdefgh"]], 64) for task in experts}
    heads = {task: nn.Identity() for task in experts}
    settings = {"steps": 16, "batch_size": 4, "objective": "soft", "layer": layer, "progress": False}
    model = ft.tint(AnsweringModel(base), experts=experts, heads=heads, unlabeled=asked, **settings)
    assert model.history.loss[-5:].mean() < model.history.loss[:5].mean()
    for task, expert in experts.items():
        torch.testing.assert_close(
            model.remerged(task)(inputs(), task), expert(**inputs()), rtol=0, atol=1e-4
        )
        among = {**inputs(), "answers": torch.tensor([[9, 1], [8, 1]])}
        assert model(among, task).shape == (2, 2)


def test_names_are_the_checkpoints_and_what_it_lacks_is_named(tmp_path):
    base = t5()
    base.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert not loaded.training and not torch.equal(loaded.lm_head.weight, loaded.shared.weight)
    names = causal_lm.names_on_disk(loaded)
    tensors = load_file(tmp_path / "model.safetensors")
    assert sorted(names.values()) == sorted(tensors)
    vectors = TaskVectors.from_models(AnsweringModel(base), {"a": AnsweringModel(fine_tuned(base, 1))})
    assert names.keys() == vectors.slots.keys()
    del tensors["decoder.final_layer_norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensor.*decoder.final_layer_norm"):
        load(tmp_path)


def test_a_layer_that_shares_its_tensor_is_refused():
    model = T5ForConditionalGeneration(t5().config)
    with pytest.raises(ValueError, match="shares a tensor with the LM head"):
        causal_lm.require_untied(model, "model.shared")
    with pytest.raises(ValueError, match=r"shares a tensor with `model.encoder.embed_tokens.weight`"):
        causal_lm.require_untied(t5(), "model.shared")
    causal_lm.require_untied(t5(), "model.decoder.block.1")
