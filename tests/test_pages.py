"""The pages about frameworks and about AdamW: the tests they name exist, what they show runs."""

from __future__ import annotations

import ast
import functools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import Bigram, Tokens
from torch import Tensor
from torch.utils.data import DataLoader

ROOT = Path(__file__).parent.parent
PAGES = ["frameworks.md", "differences.md"]
NAMED = re.compile(r"`(test_\w+)::(test_\w+)`")
EVERY_TEST = re.compile(r"test_\w+::\w*|…::")


def read(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


@functools.cache
def named_in(name: str) -> set[str]:
    path = ROOT / "tests" / f"{name}.py"
    if not path.exists():
        return set()
    found = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in found if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page: str) -> None:
    named = NAMED.findall(read(page))
    assert len(named) > 25
    assert len(named) == len(EVERY_TEST.findall(read(page))), "one is written in another way"
    missing = {f"{file}::{test}" for file, test in named if test not in named_in(file)}
    assert not missing, "\n".join(sorted(missing))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = read(page)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if path:
            assert (ROOT / "docs" / path).exists(), link
        else:
            assert anchor in anchors, link


# What the page's snippets run on -----------------------------------------------------------------


@pytest.fixture
def names(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What a reader has already."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = Bigram()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Any:
            return self.model(**batch)["loss"]

    def trainer(**arguments: Any) -> Any:
        quiet = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        return lightning.Trainer(accelerator="cpu", **quiet, **arguments)

    model = Bigram()
    yield {
        "Module": Module,
        "Trainer": trainer,
        "args": transformers.TrainingArguments(
            str(tmp_path),
            use_cpu=True,
            max_steps=6,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            dataloader_pin_memory=False,
            learning_rate=1e-2,
        ),
        "accelerator": accelerate.Accelerator(cpu=True),  # after what starts its state anew
        "data": Tokens(24),
        "fabric": lightning.Fabric(accelerator="cpu", devices=1),
        "loader": DataLoader(Tokens(24), batch_size=4),
        "loss_of": lambda model, batch: model(**batch)["loss"],
        "model": model,
    }
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


@pytest.mark.filterwarnings(
    "ignore:.isinstance.treespec, LeafSpec.:FutureWarning",
    "ignore:.*does not have many workers",
    "ignore:.*`log_every_n_steps`",
)
@pytest.mark.parametrize(
    "section", ["Hugging Face Trainer", "Accelerate", "Lightning", "Lightning Fabric"]
)
def test_what_the_page_shows_trains_and_hears_the_loss(section: str, names: dict[str, Any]) -> None:
    page = read("frameworks.md")
    (text,) = re.findall(rf"^## {section}$(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE)
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    from adaptiverl import AdaptiveAdamW, Control
    from adaptiverl.integrations.steering import steered

    names["AdaptiveAdamW"] = AdaptiveAdamW
    if section == "Accelerate":
        control = Control(mode="modulate")
        names["optimizer"] = AdaptiveAdamW(names["model"].parameters(), lr=1e-2, control=control)
        names["scheduler"] = torch.optim.lr_scheduler.LinearLR(names["optimizer"])
    exec(compile(textwrap.dedent(code), section, "exec"), names)
    if section == "Lightning":
        (optimizer,) = names["trainer"].optimizers
    elif section == "Hugging Face Trainer":
        optimizer = names["trainer"].optimizer
    else:
        optimizer = names["optimizer"]
    knobs = steered(optimizer, "").knobs()
    assert knobs["step"] == 6
    assert 0 < knobs["loss_mean"] < 10
