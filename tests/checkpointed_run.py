"""A training run that checkpoints as it goes, for the test that kills it; run as a script.

python checkpointed_run.py FOLDER STEPS PAUSE: goes on from FOLDER/checkpoint.pt if there is one,
trains to STEPS, saves after every third step, and writes FOLDER/end.pt. In the save after step
PAUSE it says "mid-save" when half of the file is written, and waits there to be killed.
"""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptiverl import AdaptiveAdamW, Control

EVERY = 3
LOUD = Control(
    every=2, noise_bounds=(0.0, 0.1), plateau_trend=(10.0, 1.0), plateau_variance=(10.0, 1.0)
)


def write_whole(path: Path, content: Any, pause: bool) -> None:
    """A checkpoint under its own name is always whole: written beside it, then renamed."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        os.fsync(file.fileno())
        if pause:
            print("mid-save", flush=True)
            time.sleep(600)
        file.write(data[len(data) // 2 :])
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def main(folder: Path, steps: int, pause: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)).bfloat16()
    model[0].float()
    optimizer = AdaptiveAdamW(model.parameters(), lr=1e-2, control=LOUD, max_grad_norm=1.0)
    optimizer.warns_of_schedulers = False  # both move the rate here, so that both must be restored
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    checkpoint, first = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        first = saved["step"]
    for step in range(first + 1, steps + 1):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(16, 6, generator=generator)
        hidden = model[1](model[0](inputs)).bfloat16()
        loss = (model[2](hidden).float() - inputs.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
        scheduler.step()
        if step % EVERY == 0:
            content = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "step": step,
            }
            write_whole(checkpoint, content, pause=step == pause)
    end = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "first": first}
    end["knobs"] = optimizer.knobs()
    write_whole(folder / "end.pt", end, pause=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
