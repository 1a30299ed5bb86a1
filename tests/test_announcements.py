"""What the alignment law says in the log: once, when and at what rate it settled."""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor

from adaptiverl import AdaptiveAdamW, AdaptiveSGD, Control, devices
from adaptiverl.layout import FIELDS, SLOT
from adaptiverl.log import LOOK_EVERY, Announcements


def block(**values: float) -> Tensor:
    """A controller's block, zero but for these."""
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


@pytest.mark.parametrize("kind", [AdaptiveAdamW, AdaptiveSGD])
def test_a_run_says_once_when_and_at_what_rate_it_settled(
    kind: type[AdaptiveAdamW] | type[AdaptiveSGD], caplog: pytest.LogCaptureFixture
) -> None:
    options = {} if kind is AdaptiveAdamW else {"momentum": 0.9}
    optimizer = kind([new_weight()], lr=1e-2, control=Control.find_lr(200), **options)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        for step in range(1, 201):
            before = len(caplog.records)
            train(optimizer, 1)
            if len(caplog.records) > before:
                settled = step, optimizer.knobs()
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    said = re.fullmatch(
        rf"{kind.__name__} holds the learning rate it found: (\S+), by step (\d+)",
        record.getMessage(),
    )
    assert said is not None
    step, knobs = settled
    assert int(said[2]) == step
    assert knobs["held"] == 1
    annealed = min(1, (200 - step) / 80)
    assert math.isclose(float(said[1]) * annealed, knobs["alpha"], rel_tol=5e-3)


def test_a_run_beyond_its_horizon_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = AdaptiveAdamW([new_weight()], lr=1e-2, control=Control.find_lr(50))
    with caplog.at_level(logging.WARNING, logger="adaptiverl"):
        train(optimizer, 50)
        assert not caplog.records
        train(optimizer, 3 * LOOK_EVERY)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "beyond Control(horizon=50): the learning rate is 0 from there on" in record.getMessage()
    assert optimizer.knobs()["lr"] == 0


def test_a_resumed_or_copied_run_does_not_say_it_again(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = AdaptiveAdamW([new_weight()], lr=1e-2, control=Control.find_lr(400))
    train(optimizer, 300)
    assert optimizer.knobs()["held"] == 1
    resumed = AdaptiveAdamW([new_weight()], lr=1e-2, control=Control.find_lr(400))
    resumed.load_state_dict(optimizer.state_dict())
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        train(resumed, 20)
        train(copy.deepcopy(optimizer), 20)
    assert not caplog.records


def test_a_run_resumed_before_it_settled_still_says_it(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = AdaptiveAdamW([new_weight()], lr=1e-2, control=Control.find_lr(400))
    train(optimizer, 5)
    assert optimizer.knobs()["held"] == 0
    resumed = AdaptiveAdamW([new_weight()], lr=1e-2, control=Control.find_lr(400))
    resumed.load_state_dict(optimizer.state_dict())
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        train(resumed, 300)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("control", [Control(), Control.frozen()])
def test_other_laws_have_nothing_to_say(control: Control, caplog: pytest.LogCaptureFixture) -> None:
    announcements = Announcements(control, "It", lambda: True)
    with caplog.at_level(logging.DEBUG, logger="adaptiverl"):
        announcements.look(block(held=1, step=9, log_lr=-3))
    assert not caplog.records


def test_of_many_ranks_one_speaks(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        for speaks in (False, True):
            announcements = Announcements(Control.find_lr(9), "It", partial(bool, speaks))
            announcements.look(block(held=1, step=9, log_lr=math.log(3e-3)))
            announcements.look(block(held=1, step=9, log_lr=math.log(3e-3)))
    (record,) = caplog.records
    assert record.getMessage() == "It holds the learning rate it found: 0.003, by step 9"


def test_over_a_scheduler_it_is_a_factor_and_nothing_ends(caplog: pytest.LogCaptureFixture) -> None:
    control = Control(law="alignment", mode="modulate", horizon=10)
    announcements = Announcements(control, "It", lambda: True)
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        for _ in range(2 * LOOK_EVERY):
            announcements.look(block(held=1, step=99, log_lr=0))
    (record,) = caplog.records
    assert record.getMessage() == "It holds the factor of the learning rate it found: 1, by step 99"


# From a GPU: what is asked of "the current device", with the block on another one


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
    garbage = block(held=1, step=math.nan, log_lr=1e6)
    monkeypatch.setattr(torch, "empty_like", lambda *_, **__: garbage.clone())
    for name, value in (
        ("device", machine.device),
        ("Event", Event),
        ("is_current_stream_capturing", machine.capturing),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    return machine


def test_a_block_on_another_device_than_the_current_one_is_read_once_it_arrived(
    two_gpus: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    announcements = Announcements(Control.find_lr(99), "It", lambda: True)
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        for step in range(1, 5):
            announcements.look(block(held=1, step=step, log_lr=0).as_subclass(OnCuda))
            if step < 4:
                assert not caplog.records, "told of memory that the copy has not reached"
            if step == 3:
                two_gpus.arrive()
    (record,) = caplog.records
    assert record.getMessage() == "It holds the learning rate it found: 1, by step 1"
    assert {device for _, device in two_gpus.asked} == {OnCuda.device.index}
    assert {what for what, _ in two_gpus.asked} == {
        "capturing?",
        "event",
        "record",
        "query",
        "copy",
    }
    assert two_gpus.current == 0


class OnAnotherCuda(OnCuda):
    device = torch.device("cuda", 2)  # type: ignore[assignment]


def test_a_block_that_moves_to_another_device_has_an_event_there(
    two_gpus: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    announcements = Announcements(Control.find_lr(99), "It", lambda: True)
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        announcements.look(block(held=1, step=1, log_lr=1).as_subclass(OnCuda))
        two_gpus.arrive()
        for step in (2, 3):
            announcements.look(block(held=1, step=step, log_lr=0).as_subclass(OnAnotherCuda))
            two_gpus.arrive()
    (record,) = caplog.records
    assert record.getMessage() == "It holds the learning rate it found: 1, by step 2"


def test_what_was_on_its_way_when_a_memory_was_loaded_is_not_told(
    two_gpus: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    announcements = Announcements(Control.find_lr(99), "It", lambda: True)
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        announcements.look(block(held=1, step=50, log_lr=1).as_subclass(OnCuda))
        two_gpus.arrive()
        announcements.resume(block(held=0))
        for step in (7, 8):
            announcements.look(block(held=step == 8, step=step).as_subclass(OnCuda))
            two_gpus.arrive()
        assert not caplog.records
        announcements.look(block(held=1, step=9).as_subclass(OnCuda))
    (record,) = caplog.records
    assert record.getMessage() == "It holds the learning rate it found: 1, by step 8"


def test_whether_a_device_captures_is_asked_of_its_own_stream(two_gpus: Machine) -> None:
    assert not devices.is_capturing(OnCuda.device)
    assert two_gpus.asked == [("capturing?", OnCuda.device.index)]
    assert not devices.is_capturing(torch.device("cpu"))
    assert len(two_gpus.asked) == 1


@pytest.mark.parametrize("number", [1e308, math.inf, -math.inf, math.nan])
def test_no_number_ends_a_step(number: float, caplog: pytest.LogCaptureFixture) -> None:
    announcements = Announcements(Control.find_lr(9), "It", lambda: True)
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        announcements.look(block(held=1, step=number, log_lr=number))
    assert "It holds" in caplog.records[0].getMessage()
