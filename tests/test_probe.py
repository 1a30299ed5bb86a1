"""`python -m adaptiverl probe`: a script's optimizer, its rate found, its weights put back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptiverl import AdaptiveAdamW
from adaptiverl.probing import command
from adaptiverl.probing.search import ProbeError, probe

optim = torch.optim
SCRIPT = """
import sys, torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
optimizer = torch.optim.AdamW(model.parameters(), lr=float(sys.argv[1]))
warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1, t / 50))
truth = torch.linspace(-1, 1, 24).view(8, 3)
for step in range(int(sys.argv[2])):
    x = torch.randn(32, 8)
    loss = (model(x) - torch.tanh(x @ truth)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    warm_up.step()
print("all steps taken")
"""


class Training:
    """A run of so many steps, and what is left of it."""

    def __init__(self, make: Callable[..., Any], steps: int = 200, scale: float = 1.0) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
        self.start = [p.detach().clone() for p in self.model.parameters()]
        self.make, self.steps, self.scale, self.taken = make, steps, scale, 0
        self.ended = False

    def __call__(self) -> None:
        optimizers = self.make(self.model)
        for step in range(self.steps):
            x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
            truth = torch.tanh(x @ torch.linspace(-1, 1, 24).view(8, 3))
            self.model.zero_grad()
            (self.scale * (self.model(x) - truth).square().mean()).backward()
            for one in optimizers:
                one.step()
            self.taken += 1
        self.ended = True


def adamw(lr: Any) -> Callable[[nn.Module], Any]:
    return lambda model: [optim.AdamW(model.parameters(), lr=lr)]


def two(model: nn.Module) -> Any:
    first, *rest = model.parameters()
    groups: list[Any] = [{"params": rest[:1]}, {"params": rest[1:], "lr": 3e-3}]
    return [optim.Muon([first], lr=1e-2), optim.NAdam(groups, lr=1e-3)]


def test_the_rate_does_not_depend_on_the_one_that_was_given() -> None:
    found = []
    for lr in (1e-5, torch.tensor(1e-1)):
        training = Training(adamw(lr))
        seen = probe(training)
        assert not training.ended
        assert 10 < training.taken < 110
        assert seen.found is not None
        assert seen.sure
        found.append(seen.found[0][0])
        assert all(map(torch.equal, training.model.parameters(), training.start))
        assert len(seen.rates) == len(seen.losses) == len(seen.cosines) == training.taken + 1
        assert seen.rates[0] == pytest.approx(1e-6)
        assert max(seen.rates) > 3 * found[-1]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert 1e-3 < found[0] < 0.1


def test_a_longer_run_gets_a_lower_rate() -> None:
    rates = []
    for steps in (4000, 32_000):
        found = probe(Training(adamw(1e-3)), steps).found
        assert found is not None
        rates.append(found[0][0])
    assert rates[1] == pytest.approx(rates[0] / 2)


def test_several_optimizers_keep_their_ratio() -> None:
    seen = probe(Training(two))
    assert seen.names == ["Muon", "NAdam"]
    assert seen.found is not None
    (first,), (second, third) = seen.found
    assert [first / second, third / second] == pytest.approx([10.0, 3.0])


def unused(model: nn.Module) -> Any:
    optim.SGD(model.parameters(), lr=0.1)
    return [optim.AdamW(model.parameters(), lr=1e-3)]


def unused_later(model: nn.Module) -> Any:
    stepped = [optim.AdamW(model.parameters(), lr=1e-3)]
    optim.SGD(model.parameters(), lr=0.1)
    return stepped


def twice_as_often(model: nn.Module) -> Any:
    first, *rest = model.parameters()
    rare, often = optim.SGD([first], lr=1e-3), optim.AdamW(rest, lr=1e-3)
    return [often, often, rare]


@pytest.mark.parametrize("make", [unused, unused_later, twice_as_often])
def test_optimizers_that_do_not_step_together(make: Any) -> None:
    seen = probe(Training(make))
    assert seen.found is not None
    assert len(seen.found) == 2
    assert len(seen.rates) == len(seen.losses) == len(seen.cosines) > 10


def test_a_run_that_holds_every_exception_does_not_train_on() -> None:
    training = Training(adamw(1e-3))
    parameters = list[Tensor]()

    def run() -> None:
        optimizer = optim.AdamW(training.model.parameters(), lr=1e-3)
        for step in range(150):
            try:
                x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
                training.model.zero_grad()
                (training.model(x) - x[:, :3].tanh()).square().mean().backward()
                optimizer.step()
            except BaseException:  # what it must not hold
                pass
        parameters.extend(training.model.parameters())

    seen = probe(run)
    assert seen.found is not None
    assert 10 < len(seen.rates) < 110
    assert all(map(torch.equal, parameters, training.start))


def test_what_was_patched_is_torchs_again() -> None:
    before = optim.Optimizer.__init__, Tensor.backward
    probe(Training(adamw(1e-3)))
    with pytest.raises(KeyError):
        probe(lambda: {}[1])  # type: ignore[index]
    assert (optim.Optimizer.__init__, Tensor.backward) == before
    training = Training(adamw(1e-3), steps=3)
    training()
    assert training.ended


def test_a_run_that_is_too_short() -> None:
    seen = probe(Training(adamw(1e-3), steps=9))
    assert seen.found is None
    assert "ended after 9 steps" in command.report(seen, 1000)[0]


@pytest.mark.parametrize(
    ("steps", "says"), [(200, "nothing confirmed, as none was marked"), (1000, "")]
)
def test_a_run_that_never_overshoots_has_no_rate(
    steps: int, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No rate up to the ramp's end overshoots: what is held, or where it climbs, is no find."""

    def run() -> None:
        generator = torch.Generator().manual_seed(0)
        param, slope = nn.Parameter(torch.zeros(50)), torch.randn(50, generator=generator)
        optimizer = optim.AdamW([param], lr=3e-4)
        for _ in range(120):
            optimizer.zero_grad()
            (param @ slope).backward()
            optimizer.step()

    with caplog.at_level("INFO", logger="adaptiverl"):
        seen = probe(run, steps)
    assert (seen.sure, seen.marked) == (False, False)
    (said,) = command.report(seen, steps)
    assert said.startswith(f"No rate in {len(seen.rates)} steps")
    assert says in caplog.text


def test_a_run_in_which_nothing_points_downhill() -> None:
    seen = probe(Training(adamw(1e-3), scale=0.0))
    assert not seen.sure
    assert command.report(seen, 1000)[0].startswith("No ")


def of_16_bits() -> None:
    param = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = optim.SGD([param], lr=0.1)
    param.sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: None, "without a step of any torch.optim.Optimizer"),
        (
            Training(lambda model: [AdaptiveAdamW(model.parameters())]),
            "has a controller of its own",
        ),
        (of_16_bits, "bfloat16 rounds most of it away"),
    ],
)
def test_what_cannot_be_probed(run: Any, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        probe(run)


def test_a_horizon_without_room() -> None:
    with pytest.raises(ValueError, match=r"a range test takes 40 steps.*got 150"):
        probe(lambda: None, 150)


# --- the command ----------------------------------------------------------------------------------


def test_a_script_is_run_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    line = [sys.executable, "-m", "adaptiverl", "probe", "train.py", "1e-4", "400"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "the weights are where they were" in done.stdout
    assert "AdamW: lr = " in done.stdout
    assert "all steps taken" not in done.stdout
    assert (tmp_path / "runs/probe/probe.png").stat().st_size > 10_000


def test_a_function_of_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = SCRIPT.replace("\n", "\n    ").replace("sys.argv", '[0, "1e-3", 20]')
    (tmp_path / "probed_task.py").write_text(f"def train():\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert command.main(["--out", "here", "probed_task:train"]) == 1
    printed = capsys.readouterr().out
    assert "No rate: the run ended after 20 steps" in printed
    assert (tmp_path / "here/probe.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.py"], "there is no script none.py"),
        (["train"], "expected a script, train.py, or a function"),
        (["adaptiverl:nothing"], "cannot find adaptiverl:nothing"),
        (["adaptiverl:__version__"], "is no function, got str"),
    ],
)
def test_what_cannot_be_run(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_what_the_run_itself_says_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", sys.path[:])
    Path("ends.py").write_text("import sys; sys.exit('give the data')")
    assert command.main(["ends.py"]) == 2
    assert "give the data\nprobe: the run ended without a step" in capsys.readouterr().err
    Path("fails.py").write_text("raise ValueError('its own')")
    with pytest.raises(ValueError, match=r"^its own$"):
        command.main(["fails.py"])


MANY = str(2**53 + 1)


@pytest.mark.parametrize(
    "arguments",
    [["--steps", MANY, "x.py"], ["--steps", "150", "x.py"], ["--steps", "many", "x.py"], []],
)
def test_a_line_that_is_not_understood(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("python -m adaptiverl probe: ")
