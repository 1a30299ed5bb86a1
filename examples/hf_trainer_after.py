"""Hugging Face's Trainer."""

from __future__ import annotations

from transformers import Trainer, TrainingArguments

from adaptiverl import AdaptiveAdamW, Control
from adaptiverl.integrations.huggingface import AdaptiveCallback
from task import STEPS, Counting, make_model

args = TrainingArguments(
    output_dir="runs/migration",
    learning_rate=3e-3,
    weight_decay=0.1,
    lr_scheduler_type="cosine",
    max_steps=STEPS,
    logging_steps=10,
    save_strategy="no",
)
trainer = Trainer(
    make_model(),
    args,
    train_dataset=Counting(),
    optimizer_cls_and_kwargs=(
        AdaptiveAdamW,
        {"lr": args.learning_rate, "control": Control(mode="modulate")},
    ),
)
trainer.add_callback(AdaptiveCallback(trainer))
trainer.train()
