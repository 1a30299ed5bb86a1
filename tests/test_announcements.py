"""What the alignment law says in the log: once, when and at what rate it settled."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from adaptiverl import AdaptiveAdamW, AdaptiveSGD, Control, devices
from adaptiverl.announcements import LOOK_EVERY, Announcements
from adaptiverl.layout import FIELDS, SLOT

Said = Callable[[], list[tuple[int, str]]]


def state(**values: float) -> Tensor:
    """A controller's state, zero but for these."""
    made = torch.zeros(len(FIELDS), dtype=torch.float64)
    for name, value in values.items():
        made[SLOT[name]] = value
    return made


def train(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Least squares with noisy batches, seeded by nothing but torch's own generator."""
    ((weight,),) = (group["params"] for group in optimizer.param_groups)
    for _ in range(steps):
        inputs = torch.randn(8, 4)
        optimizer.zero_grad()
        (inputs @ weight - inputs.sum(1) - torch.randn(8)).square().mean().backward()
        optimizer.step()


def new_weight() -> torch.nn.Parameter:
    torch.manual_seed(0)
    return torch.nn.Parameter(torch.zeros(4))


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Said]:
    """What was said so far: levels and messages."""
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        yield lambda: [(record.levelno, record.getMessage()) for record in caplog.records]


def found(rate: str, step: int, what: str = "learning rate") -> list[tuple[int, str]]:
    return [(logging.INFO, f"It holds the {what} it found: {rate}, by step {step}")]


def given(rate: str, step: int) -> list[tuple[int, str]]:
    return [(logging.INFO, f"It holds the learning rate it was given: {rate}, from step {step} on")]


FIND = Control.climb(9)
RAMP = Control(law="range_test", horizon=10_000)
FACTOR = Control(law="alignment", mode="modulate", horizon=10)


def it(control: Control = FIND, speaks: bool = True) -> Announcements:
    return Announcements(control, "It", lambda: speaks)


@pytest.mark.parametrize(
    ("kind", "options"), [(AdaptiveAdamW, {}), (AdaptiveSGD, {"momentum": 0.9})]
)
def test_a_run_says_once_when_and_at_what_rate_it_settled(
    kind: Any, options: dict[str, Any], said: Said
) -> None:
    optimizer = kind([new_weight()], lr=1e-2, control=Control.climb(200), **options)
    for step in range(1, 201):
        before = len(said())
        train(optimizer, 1)
        if len(said()) > before:
            settled, knobs = step, optimizer.knobs()
    ((level, message),) = said()
    start = rf"{kind.__name__} holds the learning rate it found: (\S+), by step {settled}"
    match = re.fullmatch(start, message)
    assert level == logging.INFO
    assert match is not None
    assert knobs["held"] == 1
    annealed = min(1, (200 - settled) / 80)
    assert math.isclose(float(match[1]) * annealed, knobs["alpha"], rel_tol=5e-3)


@pytest.mark.parametrize(
    "control",
    [Control.climb(50), dataclasses.replace(Control.frozen(), mode="replace", horizon=50)],
)
def test_a_run_beyond_its_horizon_is_warned_of_once(control: Control, said: Said) -> None:
    optimizer = AdaptiveAdamW([new_weight()], lr=1e-2, control=control)
    train(optimizer, 50)
    held = said()
    assert len(held) <= control.finds_lr
    train(optimizer, 3 * LOOK_EVERY)
    ((level, message),) = said()[len(held) :]
    assert level == logging.WARNING
    assert "beyond Control(horizon=50): the learning rate is 0 from there on" in message
    assert optimizer.knobs()["lr"] == 0


@pytest.mark.parametrize("horizon", [50, 100, 130])
def test_a_horizon_is_said_to_be_exceeded_at_once(horizon: int, said: Said) -> None:
    watching = it(Control.find_lr(horizon))
    for step in range(1, horizon + 1):
        watching.look(state(held=step > 20, step=step, log_lr=-3))
    assert [level for level, _ in said()] == [logging.INFO]
    watching.look(state(held=1, step=horizon + 1, log_lr=-3))
    assert said()[1][0] == logging.WARNING
    assert f"is at step {horizon + 1}, beyond Control(horizon={horizon})" in said()[1][1]


@pytest.mark.parametrize(("steps", "held", "news"), [(300, 1, 0), (5, 0, 1)])
def test_a_resumed_or_copied_run_says_what_was_not_said(
    steps: int, held: int, news: int, caplog: pytest.LogCaptureFixture
) -> None:
    control = Control.climb(400)
    optimizer = AdaptiveAdamW([new_weight()], lr=1e-2, control=control)
    train(optimizer, steps)
    assert optimizer.knobs()["held"] == held
    resumed = AdaptiveAdamW([new_weight()], lr=1e-2, control=control)
    resumed.load_state_dict(optimizer.state_dict())
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        for going_on in (resumed, copy.deepcopy(optimizer)):
            caplog.clear()
            train(going_on, 20 if held else 300)
            assert len(caplog.records) == news


@pytest.mark.parametrize(
    ("watching", "values", "expected"),
    [
        (it(Control()), {"log_lr": -3}, []),
        (it(Control.frozen()), {"log_lr": -3}, []),
        (it(speaks=False), {"log_lr": -3}, []),  # of many ranks one speaks
        (it(), {"log_lr": math.log(3e-3)}, found("0.003", 9)),
        # Over a scheduler it is a factor, and nothing ends.
        (it(FACTOR), {"step": 99}, found("1", 99, "factor of the learning rate")),
        (it(RAMP), {"held_at": 0, "log_lr": math.log(3e-3)}, given("0.003", 9)),
    ],
    ids=["law of losses", "frozen", "another rank", "found", "factor", "no ramp"],
)
def test_what_is_said_of_a_state(
    watching: Announcements, values: dict[str, float], expected: list[Any], said: Said
) -> None:
    for _ in range(2 * LOOK_EVERY):
        watching.look(state(**({"held": 1, "step": 9} | values)))
    assert said() == expected


@pytest.mark.parametrize(
    ("climbs", "last"),
    [
        (1, "It holds the learning rate it found: 0.25, by step 999"),
        (0, "It climbs no more and holds the learning rate 0.25, by step 999: the loss rose"),
    ],
)
def test_a_rate_that_is_given_up_is_told_and_so_is_the_next(
    climbs: int, last: str, said: Said
) -> None:
    heard = it(RAMP)
    log_lr = math.log(0.25)
    heard.look(state(held=1, held_at=60, log_lr=log_lr, log_lr_zero=-1, step=60))
    later = {"held_at": 60, "log_lr": log_lr, "log_lr_zero": -1}
    for step in range(61, 61 + 3 * LOOK_EVERY):
        gives_up = step > 61 + LOOK_EVERY
        heard.look(state(step=step, climbing=gives_up, held=not gives_up, **later))
    heard.look(state(step=999, climbing=climbs, held=1, **later))
    told = [message for _, message in said()]
    assert len(told) == 3
    starts = ("It holds the learning rate it found: 0.25", "It gives up the rate it held, by", last)
    assert all(map(str.startswith, told, starts))


@pytest.mark.parametrize("number", [1e308, math.inf, -math.inf, math.nan])
def test_no_number_ends_a_step(number: float, said: Said) -> None:
    it().look(state(held=1, step=number, log_lr=number))
    assert "It holds" in said()[0][1]


# From a GPU: what is asked of "the current device", with the state on another one


class OnCuda(Tensor):
    """Says that it lies on a GPU; a copy from it is noted, and arrives later, by `arrive`."""

    device = torch.device("cuda", 1)  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is Tensor.copy_:
            machine.note("copy")
            machine.sent.append((args[0], args[1].as_subclass(Tensor).clone()))
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class Machine:
    """GPUs as torch.cuda shows them: a current device, and each one's copies in flight."""

    def __init__(self) -> None:
        self.current = 0
        self.sent: list[tuple[Tensor, Tensor]] = []
        self.asked: list[tuple[str, int]] = []

    def note(self, what: str) -> None:
        self.asked.append((what, self.current))

    def arrive(self) -> None:
        for target, values in self.sent:
            target.data = values
        self.sent = []

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        yield
        self.current = before

    def capturing(self) -> bool:
        self.note("capturing?")
        return False


class Event:
    """Done once nothing is in flight on the device that was current when it was recorded."""

    of: int | None = None

    def __init__(self) -> None:
        machine.note("event")

    def record(self) -> None:
        machine.note("record")
        if self.of not in (None, machine.current):
            raise RuntimeError(f"event of device {self.of} recorded on device {machine.current}")
        self.of = machine.current

    def query(self) -> bool:
        machine.note("query")
        return self.of != OnCuda.device.index or not machine.sent


machine = Machine()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine.__init__()  # type: ignore[misc]
    garbage = state(held=1, step=math.nan, log_lr=1e6)
    monkeypatch.setattr(torch, "empty_like", lambda *_, **__: garbage.clone())
    monkeypatch.setattr(torch.cuda, "device", machine.device)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", machine.capturing)
    return machine


def look(watching: Announcements, step: int, log_lr: float = 0.0, held: float = 1.0) -> None:
    watching.look(state(held=held, step=step, log_lr=log_lr).as_subclass(OnCuda))


def test_a_block_on_another_device_than_the_current_one_is_read_once_it_arrived(
    two_gpus: Machine, said: Said
) -> None:
    watching = it(Control.climb(99))
    for step in range(1, 5):
        look(watching, step)
        assert step == 4 or not said(), "told of memory that the copy has not reached"
        if step == 3:
            two_gpus.arrive()
    assert said() == found("1", 1)
    assert {device for _, device in two_gpus.asked} == {OnCuda.device.index}
    asked = {what for what, _ in two_gpus.asked}
    assert asked == {"capturing?", "event", "record", "query", "copy"}
    assert two_gpus.current == 0


class OnAnotherCuda(OnCuda):
    device = torch.device("cuda", 2)  # type: ignore[assignment]


def test_a_block_that_moves_to_another_device_has_an_event_there(
    two_gpus: Machine, said: Said
) -> None:
    watching = it(Control.climb(99))
    look(watching, 1, 1.0)
    two_gpus.arrive()
    for step in (2, 3):
        watching.look(state(held=1, step=step, log_lr=0).as_subclass(OnAnotherCuda))
        two_gpus.arrive()
    assert said() == found("1", 2)


def test_what_was_on_its_way_when_a_memory_was_loaded_is_not_told(
    two_gpus: Machine, said: Said
) -> None:
    watching = it(Control.climb(99))
    look(watching, 50, 1.0)
    two_gpus.arrive()
    watching.resume(state(held=0))
    for step in (7, 8):
        look(watching, step, held=step == 8)
        two_gpus.arrive()
    assert not said()
    look(watching, 9)
    assert said() == found("1", 8)


def test_whether_a_device_captures_is_asked_of_its_own_stream(two_gpus: Machine) -> None:
    assert not devices.is_capturing(OnCuda.device)
    assert not devices.is_capturing(torch.device("cpu"))
    assert two_gpus.asked == [("capturing?", OnCuda.device.index)]
