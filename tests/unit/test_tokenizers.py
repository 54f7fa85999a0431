"""Models that read texts differently are refused: words in another order, other joins, another case."""

import json
import shutil

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from fusion_tinting.families import texts, tokenizers
from fusion_tinting.method.task_vectors import PRETRAINED

pytestmark = pytest.mark.quick

WORDS = ["[UNK]", "[PAD]", "the", "The", "caf", "é", "a", "b", "ab", "c", "bc"]


def write(folder, words=WORDS, joins=(("a", "b"), ("b", "c")), lower=False, start=None, word_level=False):
    """A tokenizer of a few words, or of letters that are joined."""
    places = {word: place for place, word in enumerate(words)}
    kind = models.WordLevel(places, unk_token="[UNK]") if word_level else models.BPE(
        places, list(joins), unk_token="[UNK]")  # fmt: skip
    backend = Tokenizer(kind)
    backend.normalizer = normalizers.Lowercase() if lower else None
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if start:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, places[start])]
        )
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        folder
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return str(folder)


SWAPPED = [*WORDS[:2], "The", "the", *WORDS[4:]]
CHANGES = {
    "words in another order": ({"words": SWAPPED}, "2 tokens have another number, such as 'The', 2 and 3"),
    "joins in another order": ({"joins": (("b", "c"), ("a", "b"))}, "joined in another order"),
}
OF_EXPERTS = {
    **CHANGES,
    "another word": ({"words": [*WORDS, "dog"]}, "12 and 11 tokens, of which 1 are not in both"),
    "small letters alone": ({"lower": True}, "differ in case"),
    "a token at the start": ({"start": "a"}, "special tokens"),
}


@pytest.mark.parametrize("case", OF_EXPERTS)
def test_an_expert_that_reads_differently_is_refused(tmp_path, case):
    change, message = OF_EXPERTS[case]
    paths = {"one": write(tmp_path / "one"), "two": write(tmp_path / "two", **change)}
    with pytest.raises(ValueError, match=f"expert `two`.*{message}"):
        tokenizers.shared(paths)
    used = tokenizers.shared({"one": paths["one"]})
    with pytest.raises(ValueError, match=f"expert `two`.*the tokenizer that is used.*{message}"):
        tokenizers.require_alike(used, paths)


@pytest.mark.parametrize("case", CHANGES)
def test_a_base_that_reads_differently_is_refused(tmp_path, case):
    change, message = CHANGES[case]
    used = tokenizers.shared({"one": write(tmp_path / "one")})
    with pytest.raises(ValueError, match=f"base `.*base` differs.*{message}"):
        tokenizers.require_alike(used, {PRETRAINED: write(tmp_path / "base", **change)})


def test_words_in_another_order_are_seen_without_joins(tmp_path):
    used = tokenizers.shared({"one": write(tmp_path / "one", word_level=True)})
    with pytest.raises(ValueError, match="another number"):
        tokenizers.require_alike(used, {PRETRAINED: write(tmp_path / "b", SWAPPED, word_level=True)})


def test_a_base_may_lack_what_was_added_and_models_without_tokenizer_say_nothing(tmp_path):
    one, base = write(tmp_path / "one", [*WORDS, "dog"]), write(tmp_path / "base")
    used = tokenizers.shared({"one": one, "two": shutil.copytree(one, tmp_path / "two")})
    padded = AutoTokenizer.from_pretrained(one)
    padded.add_special_tokens({"sep_token": "<end>"})
    padded.save_pretrained(tmp_path / "padded")
    (tmp_path / "padded" / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
    tokenizers.shared({"one": one, "padded": str(tmp_path / "padded")})
    bare = tmp_path / "bare"
    bare.mkdir()
    tokenizers.require_alike(used, {PRETRAINED: base})
    tokenizers.require_alike(used, {PRETRAINED: str(bare), "two": str(bare), "one": one})


@pytest.mark.parametrize(
    ("kind", "given", "most"),
    [
        ("bert", {"max_position_embeddings": 40}, 40),
        ("roberta", {"max_position_embeddings": 40, "pad_token_id": 1}, 38),
        ("mpnet", {"max_position_embeddings": 40, "pad_token_id": 1}, 38),
        ("xlnet", {}, None),  # positions that are relative
        ("deberta-v2", {"max_position_embeddings": 40, "position_biased_input": False}, None),
    ],
)
def test_a_text_is_cut_where_the_positions_of_its_model_end(kind, given, most):
    config = AutoConfig.for_model(kind, vocab_size=50, **given)
    assert texts.readable(config, 30) == 30 and texts.readable(config, 60) == (most or 60)
    assert 10**5 < texts.readable(config, 10**30) < 10**9 if most is None else True
