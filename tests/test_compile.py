"""torch.compile around a training step, and the whole step captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from training import (
    BUSY,
    CAPTURABLE_WARNING,
    ON_CUDA,
    assert_differ,
    assert_same,
    parameters,
    snapshot,
    values,
)

from adaptiverl import AdaptiveAdamW, Control, layout, steer

FROZEN = Control.frozen()
# The compiler's own: it looks at .grad of what passes from one graph to the next, it ignores
# torch's profiler marks around a step, and Inductor imports a deprecated part of torch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:Profiler record_function"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    CAPTURABLE_WARNING,
]
PLACES = ["all inside", "optimizer outside", "optimizer alone"]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Run:
    """A small regression; `train` compiles the part of a step that `place` names."""

    def __init__(
        self, kind: Any = AdaptiveAdamW, lr: Any = 1e-2, device: str = "cpu", **options: Any
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(device)
        self.params = list(self.model.parameters())
        if kind is AdaptiveAdamW:
            options = {"control": BUSY} | options
        self.optimizer = kind(self.params, lr=lr, **options)
        self.inputs = torch.randn(32, 8).to(device)
        self.targets = self.inputs.sum(1, keepdim=True)

    def gradients(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = (self.model(self.inputs) - self.targets).square().mean()
        loss.backward()
        if isinstance(self.optimizer, AdaptiveAdamW):
            self.optimizer.observe(loss)
        return loss

    def whole(self) -> Tensor:
        loss = self.gradients()
        self.optimizer.step()
        return loss

    def train(self, steps: int, place: str | None = None, backend: str = "eager") -> list[int]:
        """Frames compiled so far after each step; the rate changes at every one."""
        if place == "all inside":
            step: Callable[[], Any] = torch.compile(self.whole, backend=backend)
        elif place == "optimizer outside":
            gradients = torch.compile(self.gradients, backend=backend)

            def step() -> None:
                gradients()
                self.optimizer.step()

        elif place == "optimizer alone":
            alone = torch.compile(self.optimizer.step, backend=backend)

            def step() -> None:
                self.gradients()
                alone()

        else:
            step = self.whole
        compiled = []
        for number in range(steps):
            set_rate(self.optimizer, 1e-2 / (1 + number))
            step()
            compiled.append(counters["frames"]["total"])
        return compiled


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("place", PLACES)
def test_a_compiled_step_has_the_eager_bits_and_new_rates_recompile_nothing(
    place: str, tensor: bool
) -> None:
    def lr() -> Any:
        return torch.tensor(1e-2, dtype=torch.float64) if tensor else 1e-2

    eager, compiled = Run(lr=lr()), Run(lr=lr())
    eager.train(12)
    assert counters["frames"]["total"] == 0
    frames = compiled.train(12, place)
    assert_same(
        snapshot(compiled.optimizer, compiled.params), snapshot(eager.optimizer, eager.params)
    )
    assert compiled.optimizer.knobs() == eager.optimizer.knobs()
    assert compiled.optimizer.knobs()["noise"] > 0
    assert frames[0] > 0
    # After the first step everything is compiled; α, μ, σ and the rate move on without it.
    assert frames == [frames[0]] * 12


def test_the_count_would_see_a_recompilation() -> None:
    # What a Python float inside a compiled function costs: the check above is no formality.
    rates = torch.compile(lambda x, lr: x * lr, backend="eager", dynamic=False)
    frames = []
    for number in range(3):
        rates(torch.ones(2), 1.0 / (1 + number))
        frames.append(counters["frames"]["total"])
    assert frames == sorted(set(frames))


@pytest.mark.parametrize("place", PLACES[:2])
def test_inductor_trains_as_eager_does(place: str) -> None:
    eager, compiled = Run(control=Control(every=2)), Run(control=Control(every=2))
    eager.train(12)
    frames = compiled.train(12, place, "inductor")
    assert frames == [frames[0]] * 12
    torch.testing.assert_close(values(compiled.params), values(eager.params), rtol=1e-4, atol=1e-5)
    assert compiled.optimizer.knobs()["lr"] == pytest.approx(
        eager.optimizer.knobs()["lr"], rel=1e-4
    )


@pytest.mark.parametrize("place", PLACES)
def test_a_compiled_step_follows_adamw_compiled(place: str) -> None:
    ours, theirs = Run(control=FROZEN), Run(torch.optim.AdamW)
    ours.train(12, place)
    theirs.train(12, place)
    torch.testing.assert_close(values(ours.params), values(theirs.params), rtol=1e-5, atol=1e-6)


def test_closures_losses_and_schedulers_in_a_compiled_step() -> None:
    ends = []
    for backend in (None, "eager"):
        torch._dynamo.reset()
        run = Run(control=replace(BUSY, mode="modulate"))
        scheduler = torch.optim.lr_scheduler.OneCycleLR(run.optimizer, 2e-2, total_steps=13)

        def closure(run: Run = run) -> Tensor:
            run.optimizer.zero_grad()
            loss = (run.model(run.inputs) - run.targets).square().mean()
            loss.backward()
            return loss

        def by_loss(run: Run = run, closure: Callable[[], Tensor] = closure) -> None:
            loss = closure()
            run.optimizer.step(loss=loss)

        def by_closure(run: Run = run, closure: Callable[[], Tensor] = closure) -> None:
            run.optimizer.step(closure)

        steps: list[Callable[[], None]] = [by_loss, by_closure]
        if backend is not None:
            steps = [torch.compile(step, backend=backend) for step in steps]
        for number in range(12):
            steps[number % 2]()
            scheduler.step()
        ends.append(snapshot(run.optimizer, run.params))
        assert run.optimizer.knobs()["updates"] == 6
    assert_same(ends[0], ends[1])


@pytest.mark.parametrize("tell", ["observe", "pulse", "update"])
@pytest.mark.parametrize("ours", [True, False])
def test_a_compiled_loop_may_tell_losses(ours: bool, tell: str) -> None:
    """Each loss is another number, and dynamo has nothing to say of any: a warning is an error."""
    control = Control(every=None if tell == "update" else 10)
    params = [nn.Parameter(torch.ones(3))]
    one: Any = AdaptiveAdamW(params, control=control) if ours else None
    one = one or steer(torch.optim.Adam(params), control)
    told = torch.compile(lambda loss: getattr(one, tell)(loss), backend="eager")
    for loss in (2.0, 1.5, 1.0):
        told(loss)
    if tell == "observe":
        assert one._controller.observed == 3
    else:
        assert one.knobs()[f"{tell}s"] == 3


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_in_a_compiled_step(fused: bool) -> None:
    ends = []
    for backend in (None, "eager"):
        params = parameters((4,), (3, 2))
        optimizer = AdaptiveAdamW(params, lr=1e-2, control=BUSY, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(torch.zeros(()))

        def step(
            factor: Tensor,
            params: list[nn.Parameter] = params,
            optimizer: AdaptiveAdamW = optimizer,
            scaler: torch.amp.GradScaler = scaler,
        ) -> None:
            optimizer.zero_grad()
            loss = (params[0].square().sum() + params[1].square().sum()) * factor
            scaler.scale(loss).backward()
            optimizer.observe(loss)
            scaler.step(optimizer)
            scaler.update()

        run: Any = step if backend is None else torch.compile(step, backend=backend)
        for number in range(10):
            run(torch.tensor(1e38 if number in (0, 4) else 1.0))
        ends.append(snapshot(optimizer, params))
        assert optimizer.knobs()["step"] == 8
    assert_same(ends[0], ends[1])


def test_a_compiled_model_is_saved_and_goes_on() -> None:
    run, other = Run(), Run()
    run.train(6, "all inside")
    other.model.load_state_dict(run.model.state_dict())
    other.optimizer.load_state_dict(snapshot(run.optimizer, run.params)[0])
    run.train(6, "all inside")
    other.train(6, "all inside")
    assert_same(snapshot(other.optimizer, other.params), snapshot(run.optimizer, run.params))


def test_a_capture_needs_capturable() -> None:
    # The check torch makes first of all in a step; on the CPU nothing is ever being captured.
    run = Run()
    asked = []
    run.optimizer._accelerator_graph_capture_health_check = lambda: asked.append(1)
    run.gradients()
    run.optimizer.step()
    assert asked == [1]


# CUDA graphs


class Captured(Run):
    """A run on the GPU whose steps, but for the first few, are one graph replayed."""

    WARM_UP = 4

    def __init__(self, whole_step: bool, **options: Any) -> None:
        rate = torch.tensor(1e-2, dtype=torch.float64, device="cuda")
        super().__init__(lr=rate, device="cuda", capturable=True, **options)
        self.whole_step = whole_step
        self.loss = torch.zeros((), device="cuda")
        self.graph = torch.cuda.CUDAGraph()

    def gradients(self) -> Tensor:
        # Gradients and the loss stay where they are: a graph writes to the same addresses.
        self.optimizer.zero_grad(set_to_none=False)
        loss = (self.model(self.inputs) - self.targets).square().mean()
        loss.backward()
        self.loss.copy_(loss.detach())
        self.optimizer.observe(self.loss)
        return loss

    def capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for number in range(self.WARM_UP):
                set_rate(self.optimizer, 1e-2 / (1 + number))
                self.whole()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self.graph):
            if self.whole_step:
                self.whole()
            else:
                self.optimizer.observe(self.loss)
                self.optimizer.step()

    def replay(self, steps: int, before: Callable[[], None] | None = None) -> None:
        for number in range(self.WARM_UP, steps):
            set_rate(self.optimizer, 1e-2 / (1 + number))
            if before is not None:
                before()
            if not self.whole_step:
                self.optimizer.zero_grad(set_to_none=False)
                loss = (self.model(self.inputs) - self.targets).square().mean()
                loss.backward()
                self.loss.copy_(loss.detach())
            self.graph.replay()


GRAPHS = pytest.mark.parametrize(
    "whole_step", [True, False], ids=["the whole step", "the optimizer"]
)
CUDA_ONLY = pytest.mark.parametrize("device", [ON_CUDA])
CONTROLS = {
    "busy": BUSY,
    "modulate": replace(BUSY, mode="modulate"),
}


@CUDA_ONLY
@GRAPHS
@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
@pytest.mark.parametrize("name", CONTROLS)
def test_a_replayed_run_has_the_eager_bits_while_the_knobs_move(
    name: str, max_grad_norm: float | None, whole_step: bool, device: str
) -> None:
    options = {"control": CONTROLS[name], "max_grad_norm": max_grad_norm}
    eager = Captured(whole_step, **options)
    eager.train(30)
    replayed = Captured(whole_step, **options)
    replayed.capture()
    replayed.replay(30)
    assert_same(
        snapshot(replayed.optimizer, replayed.params), snapshot(eager.optimizer, eager.params)
    )
    trace = eager.optimizer.trace()
    for knob in ("lr", "momentum", "noise"):
        assert len(trace[knob].unique()) > 3, f"{knob} did not move: the test shows nothing"
    assert_same(dict(replayed.optimizer.trace()), dict(trace))


@CUDA_ONLY
@GRAPHS
@pytest.mark.parametrize("knob", ["log_lr", "logit_momentum", "noise"])
def test_a_knob_frozen_by_the_capture_would_be_seen(
    knob: str, whole_step: bool, device: str
) -> None:
    # The same replay with one knob put back, before each step, to what it was at the capture.
    eager = Captured(whole_step)
    eager.train(30)
    stuck = Captured(whole_step)
    stuck.capture()
    memory = stuck.optimizer._controller.memory
    slots = [layout.SLOT[knob]] + ([layout.SLOT["log_noise"]] if knob == "noise" else [])
    kept = memory[slots].clone()

    def put_back() -> None:
        memory[slots] = kept

    stuck.replay(30, put_back)
    assert_differ(values(stuck.params), values(eager.params))


@CUDA_ONLY
def test_a_capture_without_capturable_is_refused(device: str) -> None:
    run = Run(device="cuda")
    run.train(3)
    with (
        pytest.raises(RuntimeError, match="capturable is False"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        run.optimizer.step()


@CUDA_ONLY
def test_a_load_between_replays_is_followed_by_the_graph(device: str) -> None:
    run = Captured(whole_step=True)
    run.capture()
    run.replay(10)
    saved = snapshot(run.optimizer, run.params)
    run.replay(10)
    # Only the controller's memory keeps its address over a load; moments are torch's to replace,
    # so a graph goes on with the knobs that were loaded once a step has adopted them.
    address = run.optimizer._controller.memory.data_ptr()
    run.optimizer.load_state_dict(saved[0])
    run.optimizer.knobs()
    assert run.optimizer._controller.memory.data_ptr() == address
    assert_same(
        run.optimizer._controller.memory,
        saved[0]["param_groups"][0]["adaptive_state"],
    )


@CUDA_ONLY
def test_a_compiled_step_on_the_gpu(device: str) -> None:
    still = Control(every=2)
    eager, compiled = Run(device=device, control=still), Run(device=device, control=still)
    eager.train(12)
    frames = compiled.train(12, "optimizer outside", "inductor")
    assert frames == [frames[0]] * 12
    torch.testing.assert_close(values(compiled.params), values(eager.params), rtol=1e-2, atol=1e-3)
