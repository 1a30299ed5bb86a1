"""What the examples of TRL need beside `task`: a tokenizer of numbers, without a download."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from task import VOCABULARY


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words "0" to "63", one token each; "0" ends and pads."""
    tokenizer = Tokenizer(models.WordLevel({str(n): n for n in range(VOCABULARY)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="0", eos_token="0", pad_token="0"
    )
