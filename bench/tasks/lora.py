"""Fine-tuning a small GPT that was trained here: low-rank changes of its matrices (LoRA)."""

import hashlib
import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench.tasks import characters, gpt, text
from bench.tasks.base import Problem, Task
from bench.tasks.characters import pair, texts
from bench.tasks.gpt import GPT, GPTConfig

CACHE = Path(__file__).parents[2] / "runs" / "lora"
BASE_RATE = 3e-3  # the cosine's best on a GPT of this size
ADAPTED = ("qkv.weight", "proj.weight", "fc.weight")
SCALE = 2.0  # of the change; twice the rank over the rank, as is usual


class LowRank(nn.Module):
    """A GPT whose weights stay, each matrix of its blocks plus `SCALE`·up·down.

    Only ``up`` and ``down`` are parameters. At the start ``up`` is 0: the GPT is as it was.
    """

    def __init__(self, base: GPT, rank: int) -> None:
        super().__init__()
        base.requires_grad_(False)
        self._base = (base,)  # in a tuple, so that it is no submodule
        matrices = [(n, p) for n, p in base.named_parameters() if n.endswith(ADAPTED)]
        self._names = [name for name, _ in matrices]
        self.down = nn.ParameterList(torch.empty(rank, p.shape[1]) for _, p in matrices)
        self.up = nn.ParameterList(torch.zeros(p.shape[0], rank) for _, p in matrices)
        for down in self.down:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        (base,) = self._base
        changes = zip(self._names, self.up, self.down, strict=True)
        weights = {name: base.get_parameter(name) + SCALE * up @ down for name, up, down in changes}
        loss: Tensor = functional_call(base, weights, (inputs, targets))
        return loss


@dataclass(frozen=True, kw_only=True)
class FineTuning(Task):
    """A GPT learns Python's sources, once and for all runs; what is tuned learns English prose."""

    uses = (characters, gpt, text)

    rank: int = 4
    layers: int = 4
    heads: int = 4
    width: int = 64
    context: int = 32  # characters per window
    base_steps: int = 1500  # of AdamW under a cosine, batches as large as the tuning's
    held_out_batches: int = 16

    def prepare(self) -> None:
        self._base()

    def start(self, seed: int) -> Problem:
        base = self._base()
        torch.manual_seed(seed)
        prose = texts()[1]["prose"]
        train, held_out = prose[: len(prose) * 9 // 10], prose[len(prose) * 9 // 10 :]
        generator = torch.Generator().manual_seed(seed)
        shape = (self.steps, self.batch)
        starts = torch.randint(len(train) - self.context, shape, generator=generator)
        window = torch.arange(self.context + 1)
        count = self.held_out_batches * self.batch
        places = torch.linspace(0, len(held_out) - self.context - 1, count).long()
        kept = held_out[places[:, None] + window].split(self.batch)
        return Problem(
            LowRank(base, self.rank),
            lambda step: pair(train[starts[step, :, None] + window]),
            [pair(windows) for windows in kept],
        )

    def _model(self) -> GPT:
        torch.manual_seed(0)
        return GPT(GPTConfig(texts()[0], self.context, self.layers, self.heads, self.width))

    def _base(self) -> GPT:
        """The trained GPT, from a file of this machine's that is made where it is missing."""
        path, model = CACHE / f"{self._digest()}.pt", self._model()
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model
        _learn(self, model)
        CACHE.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: another process may be making the same.
        part = path.with_suffix(f".{os.getpid()}")
        torch.save(model.state_dict(), part)
        part.replace(path)
        return model

    def _digest(self) -> str:
        """Of everything that the trained weights depend on."""
        sizes = self.batch, self.layers, self.heads, self.width, self.context, self.base_steps
        said = repr((sizes, torch.__version__, texts()[0])) + _sources()
        return hashlib.sha256(said.encode()).hexdigest()[:12]


def _learn(task: FineTuning, model: GPT) -> None:
    code = texts()[1]["code"]
    window, generator = torch.arange(task.context + 1), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=BASE_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.base_steps)
    for _ in range(task.base_steps):
        shape = (task.batch, 1)
        starts = torch.randint(len(code) - len(window), shape, generator=generator)
        optimizer.zero_grad()
        model(*pair(code[starts + window])).backward()
        optimizer.step()
        schedule.step()


@cache
def _sources() -> str:
    files = __file__, gpt.__file__, text.__file__, characters.__file__
    return "".join(Path(file).read_text(encoding="utf-8") for file in files)
