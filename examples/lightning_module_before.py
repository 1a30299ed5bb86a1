"""A Lightning module."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import AdamW

from task import STEPS, make_loader, make_model


class LanguageModel(pl.LightningModule):
    """Next-token prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """One batch's loss, a 0-d tensor."""
        loss: Tensor = self.model(**batch).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """The optimizer, and a cosine schedule that goes by steps."""
        optimizer = AdamW(self.parameters(), lr=3e-3, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


trainer = pl.Trainer(
    max_epochs=1,
    gradient_clip_val=1.0,
    log_every_n_steps=10,
    logger=pl.loggers.CSVLogger("runs"),
)
trainer.fit(LanguageModel(), make_loader())
print(trainer.logged_metrics)
