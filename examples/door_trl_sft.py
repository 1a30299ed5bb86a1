"""TRL's SFTTrainer takes a class and its arguments; RewardTrainer, too."""

from __future__ import annotations

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from adaptiverl import AdaptiveAdamW, Control
from adaptiverl.integrations.huggingface import AdaptiveCallback
from task import Counting, make_model
from trl_task import make_tokenizer

args = SFTConfig(
    "runs/sft", max_steps=20, logging_steps=5, save_steps=10, learning_rate=3e-3, use_cpu=True
)
trainer = SFTTrainer(
    make_model(),
    args,
    train_dataset=Dataset.from_dict({"input_ids": Counting().tokens.tolist()}),
    processing_class=make_tokenizer(),
    optimizer_cls_and_kwargs=(AdaptiveAdamW, {"lr": 3e-3, "control": Control(mode="modulate")}),
    callbacks=[AdaptiveCallback()],
)
trainer.train()
