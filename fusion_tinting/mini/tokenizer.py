"""A tokenizer of one token a word, for the tiny text models."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def make_tokenizer(
    vocabulary: list[str], length: int, templates: dict[str, str], lowercase: bool = False, **special: str
) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows whole words alone.

    Args:
        vocabulary: Its tokens in the order of their ids, the special ones too.
        length: Most tokens of a text.
        templates: Where special tokens go: of a text, `single`; of two, `pair`.
        lowercase: Whether upper case counts as lower case.
        **special: Of transformers, such as `pad_token`.
    """
    ids = {token: place for place, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    used = [token for token in templates["single"].split() if token in ids]
    tokenizer.post_processor = processors.TemplateProcessing(
        **templates, special_tokens=[(token, ids[token]) for token in used]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=length,
        model_input_names=["input_ids", "attention_mask"], **special,
    )  # fmt: skip
