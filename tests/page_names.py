"""What a reader of a page has already: the names that its snippets use without making them."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import Bigram, Tokens
from torch import Tensor, nn
from torch.utils.data import DataLoader

STEPS = 6
"""Batches of `loader`, and so steps of a snippet that goes through it"""


class Writer:
    """What of TensorBoard's SummaryWriter is used."""

    def __init__(self) -> None:
        self.written: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.written.append((tag, value, step))


def squared(prediction: Tensor, target: Tensor | float = 0.0) -> Tensor:
    return (prediction - target).square().mean()


def plain() -> dict[str, Any]:
    """A loop's: a model, batches, a loss, an optimizer that has taken steps."""
    from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control

    model = nn.Linear(4, 1)
    batches = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(STEPS)]
    optimizer = AdaptiveAdamW(model.parameters(), control=Control(every=1))
    for x, y in batches:
        squared(model(x), y).backward()
        optimizer.step(loss=squared(model(x), y))
    x, y = batches[0]
    return {
        "AdaptiveAdamW": AdaptiveAdamW,
        "AdaptiveLion": AdaptiveLion,
        "AdaptiveSGD": AdaptiveSGD,
        "Control": Control,
        "batch": x,
        "batches": batches,
        "last": 0,
        "loader": [x for x, _ in batches],
        "loss": squared(model(x), y),
        "loss_fn": squared,
        "model": model,
        "optimizer": optimizer,
        "torch": torch,
        "writer": Writer(),
        "x": x,
        "y": y,
    }


def trainer_arguments(folder: Path) -> Any:
    """TrainingArguments of a short quiet run."""
    transformers = needed("transformers")
    return transformers.TrainingArguments(
        str(folder),
        use_cpu=True,
        max_steps=STEPS,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        learning_rate=1e-2,
    )


def quiet_trainer(**arguments: Any) -> Any:
    """Lightning's Trainer, without what it writes."""
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet = dict.fromkeys(names, False)
    return needed("lightning").Trainer(accelerator="cpu", **quiet, **arguments)


def module_class() -> type:
    """A LightningModule that lacks its optimizer."""
    lightning = needed("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = Bigram()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Any:
            return self.model(**batch)["loss"]

    return Module


def needed(package: str) -> Any:
    return pytest.importorskip(package, reason=f"{package} is not installed")


def in_framework(section: str, folder: Path) -> dict[str, Any]:
    """A framework's: its trainer or wrapper, and a small language model."""
    from adaptiverl import AdaptiveAdamW, Control

    names: dict[str, Any] = {
        "AdaptiveAdamW": AdaptiveAdamW,
        "Control": Control,
        "data": Tokens(4 * STEPS),
        "loader": DataLoader(Tokens(4 * STEPS), batch_size=4),
        "loss_of": lambda model, batch: model(**batch)["loss"],
        "model": Bigram(),
    }
    if section == "Hugging Face Trainer":
        needed("accelerate")
        return names | {
            "args": trainer_arguments(folder),
            "Trainer": needed("transformers").Trainer,
        }
    if section == "Lightning":
        return names | {"Module": module_class(), "Trainer": quiet_trainer}
    if section == "Lightning Fabric":
        return names | {"fabric": needed("lightning").Fabric(accelerator="cpu", devices=1)}
    control = Control(mode="modulate")
    optimizer = AdaptiveAdamW(names["model"].parameters(), lr=1e-2, control=control)
    return names | {
        "accelerator": needed("accelerate").Accelerator(cpu=True),
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.LinearLR(optimizer),
    }


FRAMEWORKS = ("Hugging Face Trainer", "Accelerate", "Lightning", "Lightning Fabric")


def what_a_reader_has(section: str, folder: Path) -> dict[str, Any]:
    """The names.

    Args:
        section: A framework's name, or any other.
        folder: Where a run may write.
    """
    return in_framework(section, folder) if section in FRAMEWORKS else plain()


@contextlib.contextmanager
def one_rank() -> Iterator[None]:
    """torch.distributed, as torchrun starts it, with one rank."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def imported(code: str) -> set[str]:
    """The packages that a snippet imports, and matplotlib where it draws."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
        if isinstance(node, ast.Name) and node.id == "plots":
            found.add("matplotlib")
    return found
