"""What all of them train: a tiny GPT-2 on sequences that count upwards. Nothing is downloaded."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel

VOCABULARY = 64
LENGTH = 16
STEPS = 40


class Counting(Dataset[dict[str, Tensor]]):
    """Sequences [LENGTH] of tokens, each one more than the one before."""

    def __init__(self, size: int = 320, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(VOCABULARY, (size, 1), generator=generator)
        self.tokens = (starts + torch.arange(LENGTH)) % VOCABULARY

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def make_model() -> GPT2LMHeadModel:
    """Two layers of 64, the same weights each time."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=64,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def make_loader() -> DataLoader[dict[str, Tensor]]:
    """STEPS batches of 8 in one epoch."""
    return DataLoader(Counting(), batch_size=8)
