"""TRL's GRPO, RLOO, DPO and KTO take no class: set the attribute before training."""

from __future__ import annotations

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from adaptiverl import AdaptiveAdamW, Control
from adaptiverl.integrations.huggingface import AdaptiveCallback
from task import make_model
from trl_task import make_tokenizer

args = GRPOConfig(
    "runs/grpo", max_steps=10, logging_steps=1, save_steps=5, learning_rate=1e-3, use_cpu=True,
    lr_scheduler_type="constant", per_device_train_batch_size=4, num_generations=4,
    max_completion_length=8,
)  # fmt: skip
trainer = GRPOTrainer(
    make_model(),
    reward_funcs=lambda completions, **_: [sum(int(t) % 2 for t in c.split()) for c in completions],
    args=args,
    train_dataset=Dataset.from_dict({"prompt": [f"{n} {n + 1}" for n in range(40)]}),
    processing_class=make_tokenizer(),
    callbacks=[AdaptiveCallback()],
)
trainer.optimizer_cls_and_kwargs = (AdaptiveAdamW, {"lr": 1e-3, "control": Control.climb("auto")})
trainer.train()
