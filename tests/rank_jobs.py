"""The same training on one rank and on several: jobs of test_distributed_training.py and others."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from ranks import bits, counted_collectives
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from training import saved_states

from adaptiverl import AdaptiveAdamW, Control

with warnings.catch_warnings():
    # torch.distributed.optim scripts functions of its own, which torch itself warns of.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.distributed.optim import ZeroRedundancyOptimizer as ZeroRedundancyOptimizer

BATCH = 8
"""Samples of all ranks together"""
STEPS = 30
NOISY = Control(every=2, noise_bounds=(0.05, 0.2), lr_bounds=(1e-4, 0.1))


def digest(optimizer: Any, params: Iterator[nn.Parameter]) -> str:
    """One word for the parameters, their whole state and the controller's memory."""
    seen = hashlib.sha256()
    states = saved_states(optimizer)
    for param in params:
        seen.update(bits(param))
        for name, value in sorted(states.get(param, {}).items()):
            seen.update(name.encode() + bits(value))
    seen.update(bits(optimizer._controller.memory))
    return seen.hexdigest()


def learn(optimizer: Any, loss: Tensor) -> None:
    """Backward, observed, and a step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.observe(loss)
    optimizer.step()


def wrap(model: nn.Module, wrapper: str) -> Any:
    """In DDP, or sharded in its place."""
    if wrapper == "ddp":
        return DistributedDataParallel(model)
    fully_shard(model)
    return model


# A long run of DDP


class Perceptron(nn.Module):
    """Two inputs' worth of structure; `double` as the caller likes."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(6, 13, dtype=dtype)
        self.out = nn.Linear(13, 1, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(x)))


def samples(count: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    y = (x[:, :1] * x[:, 1:2]).sin() + 0.1 * torch.randn(
        count, 1, generator=generator, dtype=torch.float64
    )
    return x.to(dtype), y.to(dtype)


def long_run(rank: int, size: int, steps: int, group: Any) -> tuple[str, dict[str, float]]:
    """Every rank on data of its own, so that its losses are its own too."""
    model = DistributedDataParallel(Perceptron())
    control = Control(every=5, noise_bounds=(0.0, 0.1), noise_floor=1e-3)
    optimizer = AdaptiveAdamW(
        model.parameters(), lr=3e-3, control=control, max_grad_norm=1.0, process_group=group
    )
    for step in range(steps):
        x, y = samples(4, seed=10 * step + rank)
        loss = (model(x) - y).square().mean()
        learn(optimizer, loss)
    return digest(optimizer, model.parameters()), optimizer.knobs()


# Ways to wrap a model in DDP


class TwoHeads(nn.Module):
    """Uses one head, and never the third."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(6, 5)
        self.heads = nn.ModuleList([nn.Linear(5, 1), nn.Linear(5, 1), nn.Linear(5, 1)])

    def forward(self, x: Tensor, head: int) -> Tensor:
        return self.heads[head](torch.tanh(self.body(x)))


def bf16_on_gloo(state: Any, bucket):  # type: ignore[no-untyped-def]
    """torch's own hook, which DDP takes by that name with NCCL only; any annotation it checks."""
    return bf16_compress_hook(state, bucket)


def wrapped(rank: int, size: int, how: str) -> tuple[str, dict[str, float]]:
    options: dict[str, Any] = {
        "bucket views": {"gradient_as_bucket_view": True},
        "static graph": {"static_graph": True},
    }.get(how, {})
    model = DistributedDataParallel(Perceptron(), **options)
    if how == "bf16 hook":
        model.register_comm_hook(None, bf16_on_gloo)
    optimizer = AdaptiveAdamW(model.parameters(), lr=3e-3, control=NOISY, max_grad_norm=0.5)
    micro_batches = 3 if how == "no_sync" else 1
    for step in range(20):
        optimizer.zero_grad(set_to_none=how != "bucket views")
        for micro in range(micro_batches):
            with model.no_sync() if micro + 1 < micro_batches else nullcontext():
                x, y = samples(4, seed=100 * step + 10 * micro + rank)
                loss = (model(x) - y).square().mean()
                loss.backward()
                optimizer.observe(loss)
        optimizer.step()
    if how == "bucket views":
        odd = [p.grad.data_ptr() % 16 for p in model.parameters() if p.grad is not None]
        assert any(odd), "no gradient at an odd address: the test is of nothing"
    return digest(optimizer, model.parameters()), optimizer.knobs()


def unused_parameters(rank: int, size: int) -> tuple[str, dict[str, float], list[int]]:
    """Ranks use different heads in one step; one head nobody ever uses."""
    model = DistributedDataParallel(TwoHeads(), find_unused_parameters=True)
    optimizer = AdaptiveAdamW(model.parameters(), lr=3e-3, control=NOISY)
    for step in range(20):
        x, y = samples(4, seed=10 * step + rank)
        head = (step + rank) % 2 if step % 3 else 0
        loss = (model(x, head) - y).square().mean()
        learn(optimizer, loss)
    heads = model.module.heads
    steps = [int(optimizer.state[h.weight].get("step", 0)) for h in heads]  # type: ignore[union-attr]
    return digest(optimizer, model.parameters()), optimizer.knobs(), steps


def thawed(rank: int, size: int) -> tuple[str, dict[str, float], int]:
    """A layer is frozen for ten steps, then trains."""
    inner = Perceptron()
    optimizer = AdaptiveAdamW(inner.parameters(), lr=3e-3, control=NOISY)
    for frozen in (True, False):
        inner.hidden.requires_grad_(not frozen)
        model = DistributedDataParallel(inner)
        for step in range(10):
            x, y = samples(4, seed=10 * step + rank)
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.observe(loss)
            optimizer.step()
    steps = int(optimizer.state[inner.hidden.weight]["step"])
    return digest(optimizer, inner.parameters()), optimizer.knobs(), steps


# One rank, two and four: the same global batch


class Products(nn.Module):
    """Per sample ⟨c, w⟩: a loss whose gradient is the mean of the c, wherever w is."""

    SHAPES = ((7, 5), (3,), (2, 3, 4))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(s)) for s in self.SHAPES])

    def forward(self, *coefficients: Tensor) -> Tensor:
        pairs = zip(coefficients, self.weights, strict=True)
        return torch.stack([(c * w).flatten(1).sum(1) for c, w in pairs]).sum(0)


def coefficients(step: int, exact: bool) -> list[Tensor]:
    """A batch; whole numbers have means without rounding, in whatever order they are added."""
    generator = torch.Generator().manual_seed(step)
    made = []
    for shape in Products.SHAPES:
        if exact:
            c = torch.randint(-8, 9, (BATCH, *shape), generator=generator).float()
        else:
            c = torch.randn(BATCH, *shape, generator=generator)
        made.append(c)
    return made


def same_batch(
    rank: int, size: int, wrapper: str, exact: bool
) -> tuple[list[Tensor], dict[str, float], list[Tensor]]:
    """Whole parameters, knobs, and how far rounding in the gradients' sums can move a parameter."""
    model = Products()
    net = wrap(model, wrapper)
    optimizer = AdaptiveAdamW(model.parameters(), lr=1e-2, control=NOISY, weight_decay=0.01)
    share = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    bound = Bound(optimizer)
    for step in range(STEPS):
        batch = coefficients(step, exact)
        optimizer.zero_grad()
        net(*(c[share] for c in batch)).mean().backward()
        # Losses as a stream of their own: nothing that rounding in w could reach.
        generator = torch.Generator().manual_seed(step)
        losses = 3 / (1 + step) + torch.rand(BATCH, generator=generator, dtype=torch.float64)
        optimizer.observe(losses[share].mean())
        optimizer.step()
        if size == 1 and wrapper == "ddp":
            bound.take(list(model.weights), batch)
    whole = [w.full_tensor() if isinstance(w, DTensor) else w for w in model.weights]
    return [w.detach() for w in whole], optimizer.knobs(), bound.total


class Bound:
    """How far two runs can part that differ by the order in which gradients are summed.

    With u = 2^−24, a mean of B numbers cᵢ in any order is off by at most (B + 2)·u·mean|cᵢ|, so two
    orders by δ = 2(B + 2)·u·mean|cᵢ|. The noise adds σ·RMS(g)·ξ with |ξ| < 5.8 and moves with RMS:
    σ·5.8 times the tensor's largest δ. m̂ is a weighted mean of gradients and √v̂ their weighted
    root mean square, so neither moves by more than the largest δ so far, and x = m̂/(√v̂ + ε) by at
    most δ·(1 + |x|)/(√v̂ + ε). Rounding in the averages themselves is at most 8·u per step of what
    they hold, and 4·u of the parameter. A step moves the parameter by lr·x.
    """

    UNIT = 2.0**-24

    def __init__(self, optimizer: AdaptiveAdamW) -> None:
        self.optimizer = optimizer
        self.largest = [0.0 for _ in Products.SHAPES]
        self.total = [torch.zeros(shape, dtype=torch.float64) for shape in Products.SHAPES]

    @torch.no_grad()
    def take(self, weights: list[Tensor], batch: list[Tensor]) -> None:
        knobs, states = self.optimizer.knobs(), saved_states(self.optimizer)
        for i, (w, c) in enumerate(zip(weights, batch, strict=True)):
            state = states[w]
            step = float(state["step"])
            delta = 2 * (BATCH + 2) * self.UNIT * float(c.abs().double().mean(0).max())
            delta *= 1 + 5.8 * NOISY.noise_bounds[1]
            self.largest[i] = max(self.largest[i], delta)
            root = (state["exp_avg_sq"].double() / (1 - 0.999**step)).sqrt()
            x = state["exp_avg"].double() / (1 - float(state["mu_product"])) / (root + 1e-8)
            moved = (self.largest[i] + 8 * step * self.UNIT * root) * (1 + x.abs()) / root
            self.total[i] += knobs["lr"] * moved + 4 * self.UNIT * (w.abs().double() + knobs["lr"])


def nonlinear(rank: int, size: int, wrapper: str) -> tuple[list[Tensor], dict[str, float]]:
    """A real model in float64, whose losses depend on its parameters."""
    model = Perceptron(torch.float64)
    net = wrap(model, wrapper)
    optimizer = AdaptiveAdamW(model.parameters(), lr=3e-3, control=NOISY, max_grad_norm=0.3)
    share = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    for step in range(STEPS):
        x, y = samples(BATCH, seed=step, dtype=torch.float64)
        loss = (net(x[share]) - y[share]).square().mean()
        learn(optimizer, loss)
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [p.detach() for p in whole], optimizer.knobs()


# Shards, with gradients put there by hand

SHAPES = ((16, 8), (7, 5), (3,), (1,), (5, 3, 2), (33, 31))


def whole_parameters(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def optimizer_of(params: list[nn.Parameter], options: dict[str, Any]) -> Any:
    make = options.pop("algorithm", AdaptiveAdamW)
    return make(params, **FED_OPTIONS | options)


def whole_gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [0.1 * torch.randn(shape, generator=generator) for shape in SHAPES]


def feed(optimizer: Any, params: list[nn.Parameter], steps: range, mesh: Any) -> None:
    for step in steps:
        for i, (param, grad) in enumerate(zip(params, whole_gradients(step), strict=True)):
            grad = grad.to(param.dtype)
            if i == 1 and step % 4 == 3:
                param.grad = None  # unused in this step
            elif isinstance(param, DTensor):
                param.grad = distribute_tensor(grad, mesh, param.placements)
            else:
                param.grad = grad
        optimizer.observe(2.0 - 0.01 * step + 0.3 * (step % 3))
        optimizer.step()


FED = Control(every=2, noise_bounds=(0.0, 0.2), noise_floor=0.05, gain_noise_plateau=0.1)
FED_OPTIONS: dict[str, Any] = {"lr": 1e-2, "control": FED, "max_grad_norm": 0.4, "seed": 2**40 + 3}


def fed_alone(steps: int, **options: Any) -> tuple[list[bytes], dict[str, float]]:
    """What one process makes of the gradients."""
    dtype = options.pop("dtype", torch.float32)
    params = [nn.Parameter(p) for p in whole_parameters(dtype)]
    optimizer = optimizer_of(params, options)
    feed(optimizer, params, range(steps), None)
    return [bits(p) for p in params], optimizer.knobs()


def fed_shards(
    rank: int, size: int, mesh_shape: tuple[int, ...], placements: Any, steps: int, options: Any
) -> tuple[list[bytes], dict[str, float], list[Any], list[str]]:
    """Parameters in shards on a mesh; every collective of the last step; warnings."""
    mesh = init_device_mesh("cpu", mesh_shape)
    whole = whole_parameters(options.pop("dtype", torch.float32))
    ways = placements if isinstance(placements[0], list) else [placements]
    params = [
        nn.Parameter(distribute_tensor(p, mesh, ways[i % len(ways)])) for i, p in enumerate(whole)
    ]
    optimizer = optimizer_of(params, options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        feed(optimizer, params, range(steps - 1), mesh)
        with counted_collectives() as seen:
            feed(optimizer, params, range(steps - 1, steps), mesh)
    for param in params:
        shaped = [v for v in optimizer.state[param].values() if v.dim() > 0]
        assert shaped, "no moments: the test is of nothing"
        assert all(isinstance(moment, DTensor) for moment in shaped)
    told = [str(w.message) for w in caught if "sharded parameters" in str(w.message)]
    ended = [bits(p.full_tensor()) for p in params]  # type: ignore[attr-defined]
    return ended, optimizer.knobs(), seen, told


def quiet_shards(rank: int, size: int) -> dict[str, list[Any]]:
    """Collectives of one step of sharded parameters, by what the optimizer does."""
    mesh = init_device_mesh("cpu", (size,))
    found = {}
    modes: dict[str, dict[str, Any]] = {
        "σ off": {"control": Control(noise_bounds=(0.0, 0.0))},
        "σ at its floor": {"control": Control()},
        "σ on": {"control": Control(noise_bounds=(0.1, 0.1))},
        "clipping": {"control": Control(), "max_grad_norm": 1.0},
        "clipping and σ": {"control": Control(noise_bounds=(0.1, 0.1)), "max_grad_norm": 1.0},
        "frozen": {"control": Control.frozen()},
        "deciding alone, σ possible": {"control": Control(), "process_group": False},
    }
    for name, options in modes.items():
        params = [nn.Parameter(distribute_tensor(p, mesh, [Shard(0)])) for p in whole_parameters()]
        optimizer = AdaptiveAdamW(params, lr=1e-2, **options)
        with counted_collectives() as seen:
            feed(optimizer, params, range(1), mesh)
        found[name] = [(numbers, dtype) for _, numbers, dtype in seen]
    return found


def wrong_mesh(rank: int, size: int) -> str:
    """Shards over all ranks, and a process group of some."""
    groups = [dist.new_group([0]), dist.new_group([1])]
    mesh = init_device_mesh("cpu", (size,))
    param = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    param.grad = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    optimizer = AdaptiveAdamW([param], process_group=groups[rank])
    try:
        optimizer.step(loss=1.0)
    except ValueError as error:
        return str(error)
    return "no error"


def autograd_sees_the_step(rank: int, size: int) -> bool:
    mesh = init_device_mesh("cpu", (size,))
    param = nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
    x = distribute_tensor(torch.ones(2, 4), mesh, [Shard(1)]).requires_grad_()
    y = (x @ param).sum()
    param.grad = distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)])
    AdaptiveAdamW([param]).step(loss=1.0)
    try:
        y.backward()
    except RuntimeError as error:
        return "modified by an inplace operation" in str(error)
    return False


# FSDP2's own options


def fsdp(
    rank: int, size: int, how: str
) -> tuple[list[bytes], dict[str, float], bytes, list[float]]:
    """Whole parameters after training under an option of fully_shard."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1))
    options: dict[str, Any] = {}
    if how == "bf16":
        options["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )
    if how == "offload":
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=False)
    if how == "replicated shards":
        options["mesh"] = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("copy", "shard"))
    for layer in (model[0], model[2], model[4]):
        fully_shard(layer, **options)
    fully_shard(model, **options)
    optimizer = AdaptiveAdamW(model.parameters(), lr=1e-2, control=NOISY, max_grad_norm=0.5)
    losses = []
    for step in range(20):
        x, y = samples(4, seed=10 * step + rank)
        loss = (model(x).float() - y).square().mean()
        learn(optimizer, loss)
        losses.append(optimizer.knobs()["loss"])
    whole = [bits(p.full_tensor()) for p in model.parameters()]  # type: ignore[attr-defined]
    memory = bits(optimizer._controller.memory)
    empty = [p.to_local().numel() for p in model.parameters()]  # type: ignore[attr-defined]
    assert size < 4 or how == "replicated shards" or 0 in empty or rank != size - 1
    return whole, optimizer.knobs(), memory, losses


def columns_of(values: list[Tensor]) -> list[Tensor]:
    return [v for v in values if v.dim() > 1]


def feed_columns(optimizer: Any, params: list[Any], steps: int, mesh: Any) -> None:
    for step in range(steps):
        for param, grad in zip(params, columns_of(whole_gradients(step)), strict=True):
            sharded = isinstance(param, DTensor)
            param.grad = distribute_tensor(grad, mesh, param.placements) if sharded else grad
        optimizer.step(loss=2.0 - 0.01 * step)


def fed_columns_alone(steps: int, options: Any) -> list[bytes]:
    params = [nn.Parameter(p) for p in columns_of(whole_parameters())]
    optimizer = AdaptiveAdamW(params, **FED_OPTIONS | options)
    feed_columns(optimizer, params, steps, None)
    return [bits(p) for p in params]


def fed_columns(
    rank: int, size: int, placements: Any, steps: int, options: Any
) -> tuple[list[bytes], list[str]]:
    """Parameters cut along their second dimension, whose shards are no runs of elements."""
    mesh = init_device_mesh("cpu", (size,))
    params = [
        nn.Parameter(distribute_tensor(p, mesh, placements)) for p in columns_of(whole_parameters())
    ]
    optimizer = AdaptiveAdamW(params, **FED_OPTIONS | options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        feed_columns(optimizer, params, steps, mesh)
    told = [str(w.message) for w in caught if "sharded parameters" in str(w.message)]
    return [bits(p.full_tensor()) for p in params], told  # type: ignore[attr-defined]


# A step in which only gradients have moved


def glances(rank: int, size: int) -> dict[str, int]:
    """How many entries a step of sharded parameters makes, by what happened before it."""
    mesh = init_device_mesh("cpu", (size,))
    params = [nn.Parameter(distribute_tensor(p, mesh, [Shard(0)])) for p in whole_parameters()]
    optimizer = AdaptiveAdamW(params, **FED_OPTIONS)
    made = 0
    maker = optimizer._round.plan._entries
    entry = maker._entry

    def counting(*arguments: Any) -> Any:
        nonlocal made
        made += 1
        return entry(*arguments)

    maker._entry = counting  # type: ignore[assignment,method-assign]

    def entries(step: int) -> int:
        for param, grad in zip(params, whole_gradients(step), strict=True):
            param.grad = distribute_tensor(grad, mesh, [Shard(0)])
        return step_made()

    def step_made() -> int:
        nonlocal made
        made = 0
        optimizer.step(loss=1.0)
        return made

    found = {"first": entries(0), "like the last": entries(1)}
    moment = optimizer.state[params[0]]["exp_avg"]
    optimizer.state[params[0]]["exp_avg"] = moment.clone()
    found["a moment was replaced"] = entries(2)
    found["again like the last"] = entries(3)
    params[2]._local_tensor = params[2]._local_tensor.clone()  # type: ignore[attr-defined]
    found["a shard was replaced"] = entries(4)
    entries(5)
    params[1].grad = distribute_tensor(whole_gradients(6)[1], mesh, [Replicate()])
    found["a gradient is laid out otherwise"] = step_made()
    for param, grad in zip(params, whole_gradients(7), strict=True):
        param.grad = distribute_tensor(grad, mesh, [Replicate()])
    found["all are"] = step_made()
    return found


# FSDP1


def flat_shards(
    rank: int, size: int, original: bool, strategy: str, options: dict[str, Any]
) -> list[str]:
    """What three steps on FSDP1 say, by an optimizer with these options."""
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that FSDP1 is the old one
        model: Any = FullyShardedDataParallel(
            Perceptron(),
            use_orig_params=original,
            sharding_strategy=ShardingStrategy[strategy],
            device_id=torch.device("cpu"),
        )
    optimizer = AdaptiveAdamW(model.parameters(), lr=1e-2, **options)
    said = []
    for step in range(3):
        x, y = samples(4, seed=10 * step + rank)
        try:
            learn(optimizer, (model(x) - y).square().mean())
        except ValueError as error:
            said.append(str(error))
            assert not optimizer.state, "nothing was made"
    return said
