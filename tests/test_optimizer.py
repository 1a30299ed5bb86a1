"""What is ours in an optimizer: observations, knobs, where the controller lives."""

from __future__ import annotations

import copy
import math
import resource
import threading
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from training import BUSY, assert_differ, assert_same, descend, parameters, snapshot, values

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control, log
from adaptiverl.step import memory

# Construction


def test_a_checkpoint_of_adam_is_decoupled_here_as_in_torchs_adamw() -> None:
    params = parameters((3,))
    adam = torch.optim.Adam(params, weight_decay=0.5)
    params[0].grad = torch.ones(3)
    adam.step()
    for make in (torch.optim.AdamW, AdaptiveAdamW):
        optimizer = make(params)
        optimizer.load_state_dict(copy.deepcopy(adam.state_dict()))
        assert optimizer.param_groups[0]["decoupled_weight_decay"] is True
        optimizer.step()


def test_a_scheduler_may_own_a_rate_of_zero() -> None:
    params = parameters((3,))
    optimizer = AdaptiveAdamW(params, lr=0.0, control=Control(mode="modulate"))
    before = params[0].detach().clone()
    params[0].grad = torch.ones(3)
    optimizer.step(loss=1.0)
    assert_same(params[0].detach(), before)


def test_a_frozen_first_group_is_not_taken_for_the_whole_optimizers() -> None:
    quiet = Control(every=1, noise_bounds=(0, 0))  # noise goes by the place in the optimizer
    backbone, head = parameters((2,), (3,))
    groups = [
        {"params": [backbone], "lr": 0.0},
        {"params": [head], "lr": 3e-3, "betas": (0.8, 0.99)},
    ]
    optimizer = AdaptiveAdamW(groups, control=quiet)
    alone = AdaptiveAdamW(
        [head.detach().clone().requires_grad_()], 3e-3, (0.8, 0.99), control=quiet
    )
    told = [group["adaptive_state"] for group in optimizer.param_groups]
    assert told[0] is told[1]
    for name in ("alpha", "noise"):
        assert optimizer.knobs()[name] == alone.knobs()[name]
    before = backbone.detach().clone()
    for step in range(20):
        for param in (backbone, head, *alone.param_groups[0]["params"]):
            param.grad = torch.ones_like(param)
        optimizer.step(loss=2.0 - 0.1 * step)
        alone.step(loss=2.0 - 0.1 * step)
    assert_same(backbone.detach(), before)
    assert_same(head.detach(), alone.param_groups[0]["params"][0].detach())


def test_a_group_that_joins_a_running_optimizer_starts_nothing_anew() -> None:
    backbone, head = parameters((2,), (3,))
    optimizer = AdaptiveAdamW([{"params": [backbone], "lr": 0.0}], lr=1e-3, control=BUSY)
    assert optimizer.knobs()["alpha"] == pytest.approx(1e-3)
    backbone.grad = torch.ones(2)
    optimizer.step(loss=1.0)
    optimizer.add_param_group({"params": [head], "lr": 5e-2})
    assert optimizer.knobs()["alpha"] == pytest.approx(1e-3)


# Observations


def test_three_ways_to_tell_the_loss_are_one() -> None:
    def by_observe(optimizer: AdaptiveAdamW, loss: Tensor) -> None:
        optimizer.observe(loss)
        optimizer.step()

    def by_step(optimizer: AdaptiveAdamW, loss: Tensor) -> None:
        optimizer.step(loss=loss)

    def by_closure(optimizer: AdaptiveAdamW, loss: Tensor) -> None:
        assert optimizer.step(lambda: loss) is loss

    results = []
    for tell in (by_observe, by_step, by_closure):
        params = parameters((5,))
        optimizer = AdaptiveAdamW(params, lr=1e-2, control=BUSY)
        for step in range(20):
            params[0].grad = params[0].detach().clone()
            tell(optimizer, torch.tensor(1.0 / (1 + step), requires_grad=True))
        results.append(snapshot(optimizer, params))
        assert optimizer.knobs()["updates"] == 10
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_a_closure_adds_nothing_to_what_was_observed() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params)
    params[0].grad = torch.ones(2)
    optimizer.observe(4.0)
    optimizer.step(lambda: torch.tensor(100.0))
    assert optimizer.knobs()["loss"] == 4.0


@pytest.mark.parametrize("result", [None, "text", (torch.ones(2), 1), torch.ones(3), True])
def test_a_closure_may_return_anything(result: Any) -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params)
    params[0].grad = torch.ones(2)
    assert optimizer.step(lambda: result) is result
    assert math.isnan(optimizer.knobs()["loss"])


def test_a_closure_runs_with_gradients() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params, lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        first = optimizer.step(closure)
    assert closure() < first


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (torch.ones(2), ValueError, r"must have one element, got shape \(2,\): reduce it first"),
        (True, TypeError, "got True of type bool"),
    ],
)
def test_what_is_no_loss_changes_nothing(loss: Any, error: type[Exception], message: str) -> None:
    params = parameters((4,))
    optimizer = AdaptiveAdamW(params, control=BUSY)
    descend(optimizer, params, 5)
    before = snapshot(optimizer, params)
    for tell in (optimizer.observe, lambda loss: optimizer.step(loss=loss)):
        with pytest.raises(error, match=message):
            tell(loss)
    assert_same(snapshot(optimizer, params), before)
    # The refused loss is not in the inbox either: the next one counts alone.
    optimizer.step(loss=7.0)
    assert optimizer.knobs()["loss"] == 7.0


@pytest.mark.parametrize("loss", [torch.tensor(1.0), 1.0])
def test_a_loss_in_the_closures_place_is_told_its_name(loss: Any) -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params)
    params[0].grad = torch.ones(2)
    before = snapshot(optimizer, params)
    with pytest.raises(
        TypeError, match=r"of type (Tensor|float): .*by its name, step\(loss=loss\)"
    ):
        optimizer.step(loss)
    assert_same(snapshot(optimizer, params), before)


def test_a_given_reward_raises_the_rate() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params, lr=1e-3, control=Control(reward="given", every=5))
    for step in range(50):
        params[0].grad = torch.ones(2)
        optimizer.observe(1.0, reward=float(step))
        optimizer.step()
    assert optimizer.knobs()["lr"] > 1e-3
    assert optimizer.knobs()["reward"] == 49.0


def test_a_nan_loss_is_a_signal_not_an_error() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params, lr=1e-3, control=Control(every=3))
    for loss in (1.0, math.nan, 1.0):
        params[0].grad = torch.ones(2)
        optimizer.step(loss=loss)
    knobs = optimizer.knobs()
    assert knobs["nonfinite"] == 1
    # One full reflex: k_r + k_ℓ = 0.1 log-units down, inside the cap of log 0.9.
    assert knobs["lr"] == pytest.approx(1e-3 * math.exp(-0.1))
    assert torch.isfinite(params[0]).all()


def test_one_warning_for_who_never_observes() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params, control=Control(every=3))
    params[0].grad = torch.ones(2)
    for _ in range(9):
        optimizer.step()
    with pytest.warns(UserWarning, match=r"took 10 steps and was never told a loss") as caught:
        optimizer.step()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            optimizer.step()
    quiet = AdaptiveAdamW(params, control=Control.frozen())
    for _ in range(20):
        quiet.step()


def test_one_warning_for_who_never_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "BLIND_EPOCH", 30)
    params = parameters((2,))
    params[0].grad = torch.ones(2)
    for updates, control in ((0, Control.epochwise()), (1, Control.epochwise())):
        optimizer = AdaptiveAdamW(params, control=control)
        for _ in range(29):
            optimizer.step()
        for _ in range(updates):
            optimizer.update(1.0)
        message = r"took 30 steps .* never told a loss.*optimizer\.update\(loss\) once per epoch"
        with nullcontext() if updates else pytest.warns(UserWarning, match=message):
            optimizer.step()
        for _ in range(40):
            optimizer.step()


@pytest.mark.parametrize("every", [1, None])
@pytest.mark.parametrize("rewarded", [False, True])
def test_one_warning_for_who_promises_a_reward_and_gives_none(
    every: int | None, rewarded: bool
) -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params, control=Control(reward="given", every=every))
    tell = optimizer.observe if every else optimizer.update
    for n in range(4 if every is None else 99):
        tell(1.0, 1.0 if rewarded and n == 2 else None)
    message = r"was told \d+ losses and no reward, .*it can only sink.*observe\(loss, reward\)"
    with nullcontext() if rewarded else pytest.warns(UserWarning, match=message):
        tell(1.0)
    for _ in range(200):
        tell(1.0)


@pytest.mark.parametrize("kind", [AdaptiveAdamW, AdaptiveSGD, AdaptiveLion])
def test_one_warning_for_a_scheduler_beside_a_controller_that_owns_the_rate(kind: Any) -> None:
    params = parameters((2,), (3,))
    for param in params:
        param.grad = torch.ones_like(param)
    groups = [{"params": [params[0]]}, {"params": [params[1]], "lr": 3e-2}]
    controls = [Control(), Control(mode="modulate"), Control.frozen()]
    for control in controls:
        optimizer = kind(groups, lr=1e-2, control=control)
        halves = torch.optim.lr_scheduler.LambdaLR(
            optimizer, [lambda _: 1.0, lambda n: 1 / (n + 1)]
        )
        optimizer.step(loss=1.0)
        halves.step()
        message = r"lr of parameter group 1 from 0\.03 to 0\.015.*mode='modulate'"
        warned = control.mode == "replace"
        with pytest.warns(UserWarning, match=message) if warned else nullcontext():
            optimizer.step(loss=1.0)
        for _ in range(3):
            halves.step()
            optimizer.step(loss=1.0)


def test_a_rate_that_a_load_or_the_user_moves_is_no_schedulers() -> None:
    params = parameters((2,))
    params[0].grad = torch.ones(2)
    optimizer = AdaptiveAdamW(params, lr=1e-2)
    optimizer.step(loss=1.0)
    optimizer.param_groups[0]["lr"] = 2e-2
    optimizer.step(loss=1.0)
    torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    optimizer.step(loss=1.0)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 1e-3
    optimizer.load_state_dict(saved)
    optimizer.step(loss=1.0)


def test_epoch_wise_control_moves_when_called() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(
        params, lr=1e-3, control=Control(every=None, beta_loss=0.3, beta_reward=0.3)
    )
    rates = []
    for epoch in range(5):
        for _ in range(7):
            params[0].grad = torch.ones(2)
            optimizer.step(lambda: torch.tensor(1.0))
        optimizer.update(3.0 - 0.5 * epoch)
        rates.append(optimizer.knobs()["lr"])
    assert rates[0] == pytest.approx(1e-3)
    assert rates == sorted(rates)
    assert rates[-1] > 1.1e-3
    assert optimizer.knobs()["updates"] == 5
    assert optimizer.knobs()["step"] == 35
    with pytest.raises(ValueError, match=r"observe\(\) has no effect with Control\(every=None\)"):
        optimizer.observe(1.0)
    with pytest.raises(ValueError, match=r"observe\(\) has no effect"):
        optimizer.step(loss=1.0)
    with pytest.raises(ValueError, match=r"update\(\) is for .*every=None\), got every=10"):
        AdaptiveAdamW(params).update(1.0)


# Knobs and groups


def test_groups_keep_their_ratio() -> None:
    params = parameters((3,), (3,))
    groups = [{"params": params[:1], "lr": 1e-2}, {"params": params[1:], "lr": 1e-3}]
    optimizer = AdaptiveAdamW(groups, eps=0.0, weight_decay=0.0, control=Control(every=1))
    moved = []
    for step in range(6):
        before = values(params)
        for param in params:
            param.grad = torch.full((3,), 0.5)
        optimizer.step(loss=2.0 - 0.1 * step)
        moved.append([(b - p.detach()) for b, p in zip(before, params, strict=True)])
        # With equal gradients of constant size a step is lr_g·(α/α₀) to rounding.
        rate = optimizer.knobs()["lr"]
        torch.testing.assert_close(moved[-1][0], torch.full((3,), rate), rtol=1e-4, atol=0)
        torch.testing.assert_close(moved[-1][0], 10 * moved[-1][1], rtol=1e-3, atol=0)
    assert optimizer.knobs()["lr"] > 1.05e-2
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-3]


def test_knobs_and_trace_tell_the_same() -> None:
    params = parameters((4,))
    optimizer = AdaptiveAdamW(params, lr=1e-3, control=BUSY)
    descend(optimizer, params, 30)
    trace, knobs = optimizer.trace(), optimizer.knobs()
    assert trace["step"].tolist() == [float(s) for s in range(2, 31, 2)]
    for name in ("lr", "momentum", "noise", "plateau", "loss_mean", "loss_direction", "loss"):
        assert trace[name][-1].item() == pytest.approx(knobs[name], rel=1e-12)
    assert knobs["noise"] > 0
    with pytest.raises(KeyError, match="the trace has no column 'alpha'; it has step, loss"):
        trace["alpha"]


def test_noise_moves_parameters_and_follows_the_seed() -> None:
    def run(seed: int, control: Control = BUSY) -> list[Tensor]:
        params = parameters((6,), (2, 2))
        optimizer = AdaptiveAdamW(params, lr=1e-2, control=control, seed=seed)
        descend(optimizer, params, 10)
        return values(params)

    quiet = Control(every=2, noise_bounds=(0.0, 0.0))
    assert_same(run(1), run(1))
    assert_differ(run(1), run(2))
    assert_differ(run(1), run(1, quiet))
    assert_same(run(1, quiet), run(2, quiet))


def test_a_sparse_gradient_is_refused_before_anything_moves() -> None:
    params = parameters((4,), (5, 3))
    optimizer = AdaptiveAdamW(params, control=BUSY)
    descend(optimizer, params, 3)
    before = snapshot(optimizer, params)
    params[0].grad = torch.ones(4)
    params[1].grad = torch.ones(5, 3).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients, got one of layout"):
        optimizer.step()
    assert_same(snapshot(optimizer, params), before)


@pytest.mark.parametrize("fill", [None, 0.0])
def test_missing_and_zero_gradients_draw_no_noise(fill: float | None) -> None:
    params = parameters((4,))
    optimizer = AdaptiveAdamW(params, weight_decay=0.0, control=Control(noise_bounds=(0.1, 0.1)))
    before = values(params)
    for _ in range(12):
        params[0].grad = None if fill is None else torch.full((4,), fill)
        optimizer.step(loss=1.0)
    assert_same(values(params), before)


def test_a_checkpoint_librarys_empty_step_moves_nothing() -> None:
    # What torch.distributed.checkpoint does to make an optimizer's state: zero gradients, lr = 0.
    params = parameters((5,))
    optimizer = AdaptiveAdamW(params, control=Control(every=1, noise_bounds=(0.1, 0.1)))
    before = values(params)
    memory = optimizer._controller.memory.clone()
    params[0].grad = torch.zeros(5)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(closure=None)
    assert_same(values(params), before)
    assert_same(optimizer._controller.memory, memory)


@pytest.mark.parametrize("kind", [AdaptiveAdamW, AdaptiveSGD, AdaptiveLion])
def test_a_step_leaves_the_modes_of_torch_as_they_were(kind: Any) -> None:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = kind([param], lr=0.1)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            optimizer.step(loss=1.0)
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == modes
    param.grad = torch.ones(5)[:3].to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step(loss=1.0)
    assert torch.is_grad_enabled()


def test_lion_finds_its_rate() -> None:
    """From a rate a thousand times too low, on a bowl: α grows, is held, and is annealed."""
    params = parameters((30, 4), (30,))
    optimizer = AdaptiveLion(params, lr=1e-6, control=Control.climb(horizon=600), seed=1)

    def size() -> float:
        return sum(p.square().sum().item() for p in params)

    def roll(first: int, last: int) -> None:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            for p in params:
                p.grad = p.detach() + 0.1 * torch.randn(p.shape, generator=generator)
            optimizer.step(loss=size() / 2)

    start = size()
    roll(0, 300)
    held = optimizer.knobs()
    assert held["lr"] > 1e-4
    roll(300, 600)
    assert size() < 0.05 * start
    assert optimizer.knobs()["lr"] < 0.2 * held["lr"]


# Reading the knobs


def tensors_of_a_step(optimizer: Any) -> list[Tensor]:
    """What the controller, the sweep and the next step read, beside parameters and their state."""
    controller, table = optimizer._controller, optimizer._round._group_table
    tables = [] if table is None else [table.numbers, table.effective]
    return [
        controller.state,
        controller.inbox,
        controller.ring.on(controller.device),
        controller.memory,
        *tables,
    ]


@pytest.mark.parametrize("steps", [0, 7])
def test_knobs_only_look(steps: int) -> None:
    """At a rate changed by hand they show what a step would use now, and leave that to the step."""
    params = parameters((5,), (2, 2))
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=BUSY)
    descend(optimizer, params, steps)
    before = optimizer.knobs()
    optimizer.observe(1.0)
    seen = [(t, t.clone(), t._version) for t in tensors_of_a_step(optimizer)]
    optimizer.param_groups[0]["lr"] *= 3
    knobs = optimizer.knobs()
    assert knobs == pytest.approx(before | {"lr": 3 * before["lr"]}, rel=1e-15, nan_ok=True)
    for now, (tensor, kept, version) in zip(tensors_of_a_step(optimizer), seen, strict=True):
        assert now is tensor
        assert tensor._version == version
        assert_same(tensor, kept)


def test_knobs_show_a_loaded_memory_that_no_step_has_adopted_yet() -> None:
    params = parameters((5,))
    loaded, optimizer = (AdaptiveAdamW(params, lr=1e-2, control=BUSY) for _ in range(2))
    descend(loaded, params, 9)
    # As ZeroRedundancyOptimizer loads: another memory in the group, and nobody is told.
    memory = loaded._controller.memory.clone()
    optimizer.param_groups[0]["adaptive_state"] = memory
    own = optimizer._controller.state.clone()
    assert optimizer.knobs() == loaded.knobs()
    assert optimizer.param_groups[0]["adaptive_state"] is memory
    assert_same(optimizer._controller.state, own)


def test_knobs_read_from_another_thread_while_steps_run() -> None:
    def run(reader: bool) -> Any:
        params = parameters((50,), (4, 4))
        optimizer = AdaptiveAdamW(params, lr=1e-2, control=BUSY)
        done = threading.Event()
        read: list[dict[str, float]] = []

        def look() -> None:
            while not done.is_set():
                read.append(optimizer.knobs())

        thread = threading.Thread(target=look)
        if reader:
            thread.start()
        try:
            for step in range(200):
                optimizer.param_groups[0]["lr"] = 1e-2 * (1 + step % 3)
                descend(optimizer, params, 1, first=step)
        finally:
            done.set()
            if reader:
                thread.join()
        assert bool(read) == reader
        return snapshot(optimizer, params)

    assert_same(run(True), run(False))


# Where the controller lives


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """Controllers of meta parameters live beside them: the meta device stands for an accelerator.

    Yields:
        Where an operator observed.
    """
    meta, observed = torch.device("meta"), []

    def device_of(device: torch.device) -> torch.device:
        return meta if device == meta else torch.device("cpu")

    def note(inbox: Tensor, loss: Tensor | float, reward: Tensor | float | None) -> None:
        assert inbox.device == meta
        observed.append(loss.device if isinstance(loss, Tensor) else inbox.device)

    monkeypatch.setattr(memory, "controller_device", device_of)
    library = torch.library.Library("adaptiverl", "IMPL")
    for name in ("observe_", "observe_numbers_"):
        library.impl(name, note, "Meta", allow_override=True)
    yield observed
    library._destroy()


class CopiesToTheHost(TorchDispatchMode):
    """Counts copies onto the CPU, each of which would wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        copies = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if func in copies and result.device.type == "cpu":
            self.seen += any(isinstance(a, Tensor) and a.device.type != "cpu" for a in args)
        return result


@pytest.mark.parametrize("moved", [False, True], ids=["", "moved after construction"])
def test_the_first_observation_is_made_where_the_parameters_are(
    elsewhere: list[torch.device], moved: bool
) -> None:
    params = list(nn.Linear(3, 2, device="cpu" if moved else "meta").parameters())
    optimizer = AdaptiveAdamW(params, lr=1e-2)
    # To another kind of device torch moves a parameter by making a new one.
    optimizer.param_groups[0]["params"] = [nn.Parameter(p.to("meta")) for p in params]
    with CopiesToTheHost() as copies:
        optimizer.observe(1.0)
        optimizer.observe(torch.tensor(2.0), None)
    assert elsewhere == [torch.device("meta")] * 2
    assert copies.seen == 0
    assert optimizer._controller.device == torch.device("meta")
    handles = [group["adaptive_state"] for group in optimizer.param_groups]
    assert all(handle.controller is optimizer._controller for handle in handles)
    assert optimizer._controller.observed == 2


def resident() -> int:
    """Bytes of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_four_hundred_small_optimizers_keep_no_empty_traces() -> None:
    """A full trace of each would be 200 MB."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("only Linux tells how much memory is in use")
    before = resident()
    optimizers = [AdaptiveAdamW(parameters((1,))) for _ in range(400)]
    for optimizer in optimizers:
        optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
        for _ in range(12):
            optimizer.step(loss=1.0)
    assert resident() - before < 60e6
    assert len(optimizers[0].trace()["step"]) == 1, "no row was written"


def test_lions_search_needs_no_first_momentum() -> None:
    """What the gradient is compared with is Lion's average, which has a decay of its own."""
    params = parameters((5,))
    control = Control.find_lr(200)
    optimizer = AdaptiveLion(params, lr=1e-3, betas=(0.0, 0.9), control=control)
    descend(optimizer, params, 20)
    knobs = optimizer.knobs()
    assert knobs["alpha"] > 1e-5, "it did not search"
    assert -1 <= knobs["alignment"] <= 1
    assert knobs["momentum"] == 0.0
