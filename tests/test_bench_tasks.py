"""bench/tasks: functions of a seed alone, what is held out, the text, the GPT."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import assert_differ, assert_same

from bench.requests import RequestError
from bench.tasks import LAW_TASKS, QUICK, ROBUSTNESS, TASKS, Problem, Task, data, lora
from bench.tasks import text as text_module
from bench.tasks.base import Objective, shuffled
from bench.tasks.characters import Characters, Passages
from bench.tasks.disturbed import WrongLabels
from bench.tasks.gpt import GPT, GPTConfig
from bench.tasks.lora import FineTuning
from bench.tasks.supervised import mislabelled
from bench.tasks.text import REPLACEMENT, encode, load_text

ON_CPU = [name for name, task in TASKS.items() if task.device == "cpu"]
CONTEXT = 16
PROSE = "How now, brown cow? The 7 quick foxes jump over 12 lazy dogs. " * 40


def contents(problem: Problem) -> tuple[list[Tensor], Any, Any]:
    """The weights, the batches of three steps and the held-out set."""
    weights = [p.detach().clone() for p in problem.objective.parameters()]
    return weights, [problem.batch(step) for step in range(3)], list(problem.held_out)


def short(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(lora, "CACHE", cache)
    more: Any = {"base_steps": 2} if isinstance(TASKS[name], FineTuning) else {}
    return replace(TASKS[name], steps=3, **more)


@pytest.mark.parametrize("name", ON_CPU)
def test_a_task_is_a_function_of_its_seed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (reason := TASKS[name].missing()) is not None:
        pytest.skip(reason)
    task = short(name, tmp_path, monkeypatch)
    first, again, other = (contents(task.start(seed)) for seed in (1, 1, 2))
    assert_same(first, again)
    assert_differ(first[0], other[0])
    assert_same(first[2], other[2])
    if name != "quadratic":  # where every batch is the same
        assert_differ(first[1], other[1])
        assert_differ(first[1][0], first[1][1])


def test_the_registry_knows_what_each_task_is_for() -> None:
    assert len(QUICK) == 3
    assert set(QUICK) <= {name for name, task in ROBUSTNESS.items() if task.device == "cpu"}
    assert not ROBUSTNESS.keys() & LAW_TASKS.keys()
    assert all(task.role is None for task in ROBUSTNESS.values())
    roles = [task.role for task in LAW_TASKS.values()]
    assert {role: roles.count(role) for role in roles} == {
        "development": 6,
        "looked at": 3,
        "held out": 6,
    }


def test_what_is_fine_tuned_was_trained_once_and_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = short("lora", tmp_path, monkeypatch)
    task.prepare()
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    problem = task.start(0)
    assert sum(p.numel() for p in problem.objective.parameters()) == 16384
    untouched = problem.held_out_loss()
    learner: Any = problem.objective
    (base,) = learner._base
    with torch.no_grad():
        alone = torch.stack([base(*batch) for batch in problem.held_out]).double().mean()
    # At the start the change is nothing; the base has no gradient, and what is trained has one.
    assert untouched == pytest.approx(alone.item())
    problem.loss(0).backward()
    assert all(p.grad is not None for p in problem.objective.parameters())
    assert all(p.grad is None for p in base.parameters())
    optimizer = torch.optim.SGD(problem.objective.parameters(), lr=1.0)
    optimizer.step()
    assert problem.held_out_loss() != untouched
    task.prepare()
    assert [(f, f.read_bytes()) for f in tmp_path.iterdir()] == [(file, before)]
    other = replace(task, base_steps=3)  # type: ignore[call-arg]
    other.prepare()
    assert len(list(tmp_path.iterdir())) == 2


def test_epochs_hold_every_example_once() -> None:
    order = shuffled(count=10, steps=4, batch=5, seed=0).flatten().tolist()
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_held_out_examples_are_not_trained_on() -> None:
    (train, _), (held_out, _) = data.digits()
    assert len(train) + len(held_out) == 1797
    distances = torch.cdist(held_out, train).min(1).values
    assert float((distances == 0).double().mean()) < 0.01


def test_held_out_losses_are_taken_without_dropout() -> None:
    ones = torch.ones(3, 3)  # half of nine is no number that dropout can leave
    objective = Objective(nn.Dropout(0.5), lambda outputs, targets: outputs.mean())
    problem = Problem(objective, lambda step: (ones, ones), [(ones, ones)])
    assert problem.held_out_loss() == 1
    assert problem.loss(0) != 1


def test_wrong_labels() -> None:
    labels = torch.full((20_000,), 3)
    assert torch.equal(mislabelled(labels, 0.0, 0), labels)
    # A tenth of those drawn at random are right by chance.
    share = (mislabelled(labels, 0.1, 0) != labels).double().mean()
    assert share == pytest.approx(0.09, abs=0.01)
    ((_, right), kept), ((_, noisy), same) = data.digits(), data.mislabelled_digits()
    assert float((right != noisy).double().mean()) == pytest.approx(0.09, abs=0.02)
    assert_same(kept, same)


@pytest.mark.parametrize("make", [WrongLabels, Passages])
def test_only_disturbed_batches_are_others(make: Callable[..., Any]) -> None:
    quiet, wild = (
        make(name="", steps=9, between=between).start(0) for between in ((0, -1), (3, 4))
    )
    same = [torch.equal(quiet.batch(s)[-1], wild.batch(s)[-1]) for s in range(9)]
    assert same[:4] == [True, True, False, False]
    if make is WrongLabels:
        assert all(same[4:])


def test_what_cannot_run_here_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "FASHION", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("fashion-cnn", "fashion-mlp"):
        assert "install Debian's dataset-fashion-mnist" in str(TASKS[name].missing())
    assert TASKS["gpt-10m"].missing() == "it needs a CUDA device and torch sees none"


def test_idx_files(tmp_path: Path) -> None:
    path = tmp_path / "two.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x02" + struct.pack(">2i", 2, 3) + bytes(range(6))))
    assert data.read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(gzip.compress(b"\0\0\x0d\x01" + bytes(8)))
    with pytest.raises(ValueError, match=r"two\.gz is not an idx file of bytes"):
        data.read_idx(path)


# --- Text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"To be, or not to be", "is too short: 19 characters.* at least 640"),
        (b"a" * 5000, "repeats one character"),
        (b"readable at first\0" * 500, "zero byte at offset 17"),
        (b"caf\xe9 " * 500, r"byte 0xe9 at offset 3 is not UTF-8"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, "is not text"),
        (None, "does not exist"),
    ],
)
def test_unusable_text_is_named_with_the_reason(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "book.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError, match=message) as caught:
        load_text(str(path), CONTEXT)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="is not a file"):
        load_text(str(tmp_path), CONTEXT)


def test_encoding_is_reversible_and_the_tail_is_held_out() -> None:
    text = encode("here", PROSE)
    characters = torch.cat([text.train, text.held_out]).tolist()
    assert "".join(text.vocabulary[index] for index in characters) == PROSE
    assert len(text.held_out) == len(PROSE) // 10
    assert text.replaced == 0


def test_rare_characters_share_one_symbol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "MAX_VOCABULARY", 3)
    # b and a are the commonest; c, d and the emoji are the rest.
    text = encode("here", "bbbbbaaaacc" + "d\U0001f600")
    characters = torch.cat([text.train, text.held_out]).tolist()
    assert "".join(text.vocabulary[i] for i in characters) == "bbbbbaaaa" + 4 * REPLACEMENT
    assert (text.replaced, len(text.vocabulary)) == (4, 3)


# --- The GPT ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"),
    [("gpt-31k", 0.031), ("gpt-0.2m", 0.2), ("gpt-10m", 10), ("gpt-124m", 124)],
)
def test_a_gpt_is_as_large_as_its_name_says(name: str, millions: float) -> None:
    task = TASKS[name]
    assert isinstance(task, Characters)
    with torch.device("meta"):
        model = GPT(GPTConfig(163, task.context, task.layers, task.heads, task.width))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.1)


def test_the_model_cannot_see_what_follows() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocabulary=7, context=8, layers=2, heads=2, width=8))
    characters = torch.tensor([[1, 2, 3, 4, 5, 6]])
    # Only the third position counts: cross_entropy leaves out targets of -100.
    targets = torch.tensor([[-100, -100, 4, -100, -100, -100]])
    loss = model(characters, targets)
    later, earlier = characters.clone(), characters.clone()
    later[0, 3:] = 0
    earlier[0, 0] = 0
    torch.testing.assert_close(model(later, targets), loss)
    assert abs(model(earlier, targets) - loss) > 1e-7
    loss.backward()
    # torch's fused AdamW on the CPU, the baseline, is wrong where strides differ.
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.stride() == parameter.stride(), name


def test_windows_reach_the_text_s_end_and_targets_are_one_on(tmp_path: Path) -> None:
    path = tmp_path / "letters.txt"
    path.write_text("".join(map(chr, range(ord("0"), ord("0") + 80))))
    sizes: Any = {"layers": 1, "heads": 1, "width": 4, "context": 2, "steps": 40, "batch": 20}
    task = Characters(name="", path=str(path), held_out_batches=1, **sizes)
    problem = task.start(0)
    for step in range(40):
        inputs, targets = problem.batch(step)
        assert torch.equal(inputs + 1, targets)
    seen = torch.cat([problem.batch(step)[1].flatten() for step in range(40)])
    assert (seen.min(), seen.max()) == (1, 71)
    assert problem.held_out[0][0].min() == 72
    assert problem.held_out[0][1].max() == 79
