"""Language models small enough to train in a second, and their data; nothing is downloaded."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

VOCABULARY = 32
LENGTH = 8


class Tokens(Dataset[dict[str, Tensor]]):
    """Sequences that count upwards from somewhere: there is something to learn."""

    def __init__(self, size: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(VOCABULARY, (size, 1), generator=generator)
        self.tokens = (starts + torch.arange(LENGTH)) % VOCABULARY

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def tiny_gpt2() -> Any:
    """Hugging Face's GPT-2 with two layers of sixteen, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=LENGTH,
            n_embd=16,
            n_layer=2,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


class Bigram(nn.Module):
    """Predicts a token from the one before it; returns what a Hugging Face model returns."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.dropout(self.embedding(input_ids[:, :-1])))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


class NanOnce(Bigram):
    """Its third loss is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        outputs = super().forward(input_ids, labels)
        self.calls += 1
        if self.calls == 3:
            outputs["loss"] = outputs["loss"] * torch.nan
        return outputs


def overflow(model: nn.Module, backwards: Collection[int]) -> None:
    """Make some of a model's backward passes, counted from 0, end in an infinite gradient."""
    count = itertools.count()

    def hook(grad: Tensor) -> Tensor:
        return grad + torch.inf if next(count) in backwards else grad

    next(model.parameters()).register_hook(hook)
