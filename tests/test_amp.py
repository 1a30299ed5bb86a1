"""Mixed precision: gradient scalers of both protocols, autocast.

See method.md#skipped-steps.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from training import (
    BUSY,
    DEVICES,
    ON_CUDA,
    assert_differ,
    assert_same,
    parameters,
    quadratic,
    snapshot,
    values,
)

from adaptiverl import AdaptiveAdamW, Control, layout

SHAPES = ((7,), (6, 5), (), (3, 4))
PROTOCOLS: dict[str, dict[str, Any]] = {
    # The scaler unscales the gradients, looks at them, and does not call step after an overflow.
    "generic": {},
    # The scaler calls step at all times and hands it grad_scale and found_inf; nothing waits.
    "fused": {"fused": True},
}
OVERFLOWS = {0, 3, 4, 9, 15}
"""Training steps whose gradients overflow, the very first among them"""


def build(params: list[nn.Parameter], protocol: str, **options: Any) -> AdaptiveAdamW:
    arguments: dict[str, Any] = {"lr": 1e-2, "control": BUSY}
    return AdaptiveAdamW(params, **(arguments | PROTOCOLS[protocol] | options))


def scaler_for(device: str = "cpu", **options: Any) -> GradScaler:
    # The factors are powers of two, so that scaling and unscaling lose no bit.
    defaults: dict[str, Any] = {"init_scale": 1024.0, "growth_interval": 5}
    scaler = GradScaler(device, **(defaults | options))
    scaler.scale(torch.zeros((), device=device))  # it makes its scale at the first loss it sees
    return scaler


def spoiled(loss: Tensor, step: int) -> Tensor:
    """The loss of this step; on some its gradients overflow float32."""
    return loss * 1e38 if step in OVERFLOWS else loss


# An overflow changes nothing at all


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscale_"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_overflowed_steps_might_as_well_not_have_been(
    protocol: str, unscale: bool, device: str
) -> None:
    params = parameters(*SHAPES, device=device)
    optimizer, scaler = build(params, protocol), scaler_for(device)
    for step in range(24):
        loss = quadratic(params, step)
        optimizer.zero_grad()
        scaler.scale(spoiled(loss, step)).backward()
        optimizer.observe(spoiled(loss, step))
        if unscale:
            scaler.unscale_(optimizer)
        before = snapshot(optimizer, params)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if step in OVERFLOWS:
            assert scaler.get_scale() == scale / 2
            if step:
                assert_same(snapshot(optimizer, params), before)
            else:  # what the first step makes of a state is there, but says nothing yet
                assert_same(values(params), before[1])
                assert all(not value.any() for value in moments(optimizer))
        else:
            assert_differ(values(params), before[1])

    plain = parameters(*SHAPES, device=device)
    reference = build(plain, protocol)
    for step in range(24):
        if step not in OVERFLOWS:
            loss = quadratic(plain, step)
            reference.zero_grad()
            loss.backward()
            reference.observe(loss)
            reference.step()
    assert_same(snapshot(optimizer, params), snapshot(reference, plain))
    assert optimizer.knobs() == reference.knobs()
    assert optimizer.knobs()["step"] == 24 - len(OVERFLOWS)
    assert optimizer.knobs()["noise"] > 0


def moments(optimizer: AdaptiveAdamW) -> list[Tensor]:
    """Every state entry that is zero before the first step."""
    return [entry for state in optimizer.state.values() for entry in state.values()]


# What counts as one observation, in whatever order a loop is written


def order_a(optimizer: AdaptiveAdamW, loss: Tensor, scaler: GradScaler, last: bool) -> None:
    """zero_grad at the end; observed after backward."""
    scaler.scale(loss).backward()
    optimizer.observe(loss)
    if last:
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def order_b(optimizer: AdaptiveAdamW, loss: Tensor, scaler: GradScaler, last: bool) -> None:
    """Observed before backward."""
    optimizer.observe(loss)
    scaler.scale(loss).backward()
    if last:
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def order_c(optimizer: AdaptiveAdamW, loss: Tensor, scaler: GradScaler, last: bool) -> None:
    """Gradients dropped by hand, as Module.zero_grad drops them; the optimizer is not told."""
    scaler.scale(loss).backward()
    optimizer.observe(loss.detach())
    if last:
        scaler.step(optimizer)
        scaler.update()
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = None


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("order", [order_a, order_b, order_c])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_micro_batches_average_and_a_skipped_steps_losses_do_not_count(
    protocol: str, order: Callable[..., None], micro_batches: int
) -> None:
    params = parameters((5,))
    optimizer, scaler = build(params, protocol), scaler_for()
    told = []
    for step in range(20):
        losses = [1.0 + step + 0.25 * k for k in range(micro_batches)]
        for k, value in enumerate(losses):
            # The loss has this value; its gradient is 1, or overflows.
            slope = 1e38 if step in OVERFLOWS and k == 0 else 1.0
            distance = (params[0] * slope).sum()
            order(optimizer, distance - distance.detach() + value, scaler, k == micro_batches - 1)
        if step not in OVERFLOWS:
            told.append(sum(losses) / micro_batches)
        loss = optimizer.knobs()["loss"]
        assert loss == told[-1] if told else math.isnan(loss)
    memory = optimizer._controller.memory
    assert memory[layout.SLOT["loss_count"]] == len(told)


PEEKS: dict[str, Callable[[Any], object]] = {
    "getmembers": inspect.getmembers,
    "hasattr": lambda optimizer: hasattr(optimizer, "_step_supports_amp_scaling"),
    "a debugger": lambda optimizer: [optimizer._step_supports_amp_scaling for _ in range(3)],
}


@pytest.mark.parametrize("peek", PEEKS.values(), ids=list(PEEKS))
@pytest.mark.parametrize("zeroed", ["first", "after observing", "last"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_looking_at_an_optimizer_changes_nothing(
    protocol: str, zeroed: str, peek: Callable[[Any], object]
) -> None:
    """Between micro-batches, before and after steps; other loops throw gradients away elsewhere."""

    def run(look: Callable[[Any], object]) -> Any:
        params = parameters((5,), (2, 2))
        optimizer, scaler = build(params, protocol), scaler_for()
        for step in range(12):
            if zeroed == "first":
                optimizer.zero_grad()
            for micro in range(3):
                loss = quadratic(params, 3 * step + micro)
                optimizer.observe(loss)
                if zeroed == "after observing" and micro == 0:
                    optimizer.zero_grad()
                scaler.scale(spoiled(loss, step)).backward()
                if micro < 2:
                    look(optimizer)
            scaler.step(optimizer)
            scaler.update()
            if zeroed == "last":
                optimizer.zero_grad()
            look(optimizer)
        return snapshot(optimizer, params)

    assert_same(run(peek), run(id))


def drop_gradients(model: nn.Module) -> None:
    for param in model.parameters():
        param.grad = None


THROWN_AWAY: dict[str, Callable[[AdaptiveAdamW, nn.Module], object]] = {
    "optimizer.zero_grad": lambda optimizer, model: optimizer.zero_grad(),
    "optimizer, in place": lambda optimizer, model: optimizer.zero_grad(set_to_none=False),
    "model.zero_grad": lambda optimizer, model: model.zero_grad(),
    "by hand": lambda optimizer, model: drop_gradients(model),
}


@pytest.mark.parametrize("told_in_step", [False, True], ids=["", "told in step"])
@pytest.mark.parametrize("late", [False, True], ids=["", "observed before"])
@pytest.mark.parametrize("how", THROWN_AWAY)
def test_a_skipped_steps_loss_is_dropped_however_its_gradients_are(
    how: str, late: bool, told_in_step: bool
) -> None:
    """Once, twice and three times in a row; `late`: the next loss comes before zero_grad."""
    model = nn.Linear(4, 1)
    optimizer, scaler = build(list(model.parameters()), "generic"), scaler_for()
    for step in range(10):
        value, skipped = 1.0 + step, step in (1, 3, 4, 6, 7, 8)
        if not late:
            THROWN_AWAY[how](optimizer, model)
        if not told_in_step or skipped:
            optimizer.observe(math.nan if skipped else value)
        if late:
            THROWN_AWAY[how](optimizer, model)
        output = model(torch.ones(4)).sum()
        scaler.scale(output * math.inf if skipped else output).backward()
        scaler.step(optimizer, **({"loss": value} if told_in_step else {}))
        scaler.update()
        if not skipped:
            assert optimizer.knobs()["loss"] == value
    knobs = optimizer.knobs()
    assert (knobs["step"], knobs["nonfinite"]) == (4, 0)


def test_gradients_zeroed_in_place_behind_its_back_leave_the_skipped_loss() -> None:
    """What `Observations` says: nothing tells this from a micro-batch."""
    model = nn.Linear(4, 1)
    optimizer, scaler = build(list(model.parameters()), "generic"), scaler_for()
    for value, size in ((2.0, math.inf), (4.0, 1.0)):
        model.zero_grad(set_to_none=False)
        optimizer.observe(value)
        scaler.scale(model(torch.ones(4)).sum() * size).backward()
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.knobs()["loss"] == 3.0


# The protocols


def test_the_fused_protocol_leaves_gradients_as_they_were() -> None:
    params = parameters(*SHAPES)
    optimizer, scaler = build(params, "fused"), scaler_for()
    scaler.scale(quadratic(params, 0)).backward()
    kept = [p.grad.clone() for p in params if p.grad is not None]
    optimizer.observe(1.0)
    scaler.step(optimizer)
    assert_same([p.grad for p in params], kept)


# Autocast


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_autocast_follows_adamw_and_goes_down(
    protocol: str, dtype: torch.dtype, device: str
) -> None:
    def train(kind: Any, **options: Any) -> tuple[list[float], list[Tensor], Any]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)).to(device)
        optimizer = kind(model.parameters(), lr=1e-2, **PROTOCOLS[protocol], **options)
        scaler = scaler_for(device, enabled=dtype == torch.float16)
        inputs = torch.randn(64, 6).to(device)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            with torch.autocast(device, dtype):
                output = model(inputs)
                assert output.dtype == dtype
                loss = (output - inputs.sum(1, keepdim=True)).square().mean()
            scaler.scale(loss).backward()
            if isinstance(optimizer, AdaptiveAdamW):
                optimizer.observe(loss)
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
        return losses, values(model.parameters()), optimizer

    expected, reference, _ = train(torch.optim.AdamW)
    frozen, still, _ = train(AdaptiveAdamW, control=Control.frozen())
    # Half-precision activations round to other sides once parameters differ in their last bit.
    torch.testing.assert_close(still, reference, rtol=1e-2, atol=1e-2)
    assert frozen == pytest.approx(expected, rel=2e-2)
    adapted, _, optimizer = train(AdaptiveAdamW)
    assert adapted[-1] < 0.5 * adapted[0]
    assert optimizer.knobs()["updates"] == 4
    assert optimizer.knobs()["loss"] == pytest.approx(adapted[-1])


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("device", [ON_CUDA])
def test_the_fused_protocol_waits_for_nothing(device: str) -> None:
    params = parameters(*SHAPES, device=device)
    optimizer, scaler = build(params, "fused", max_grad_norm=1.0), scaler_for(device)

    def step(number: int) -> None:
        loss = quadratic(params, number)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        optimizer.observe(loss)
        torch.cuda.set_sync_debug_mode("error" if number > 3 else "default")
        try:
            scaler.step(optimizer)
            scaler.update()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    for number in range(8):
        step(number)
    assert optimizer.knobs()["step"] == 8
