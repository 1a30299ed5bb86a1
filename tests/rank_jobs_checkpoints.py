"""Jobs of test_distributed_checkpoints.py: save on some ranks, load on others, go on."""

from __future__ import annotations

import os
import warnings
from functools import partial
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from rank_jobs_training import FED_OPTIONS, feed, whole_parameters
from ranks import bits, counted_collectives
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from adaptiverl import AdaptiveAdamW, Control
from adaptiverl.distributed import number_parameters

with warnings.catch_warnings():
    # torch.distributed.optim scripts functions of its own, which torch itself warns of.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.distributed.optim import ZeroRedundancyOptimizer

Answer = tuple[list[bytes], dict[str, float]]


class Holder(nn.Module):
    """Parameters of every shape that a shard can have; no forward, gradients come by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(p) for p in whole_parameters()])


def sharded(size: int) -> tuple[nn.Module, Any, Any, list[nn.Parameter]]:
    mesh = init_device_mesh("cpu", (size,))
    model = Holder()
    fully_shard(model, mesh=mesh)
    optimizer = AdaptiveAdamW(model.parameters(), **FED_OPTIONS)
    return model, optimizer, mesh, list(model.parameters())


def answer(params: list[nn.Parameter], optimizer: Any) -> Answer:
    whole = [p.full_tensor() for p in params]  # type: ignore[attr-defined]
    return [bits(p) for p in whole], optimizer.knobs()


def options_of(how: str) -> StateDictOptions:
    return StateDictOptions(
        flatten_optimizer_state_dict=how == "flattened",
        cpu_offload=how in ("offloaded", "from rank 0"),
        full_state_dict=how == "from rank 0",
        broadcast_from_rank0=how == "from rank 0",
    )


def save(rank: int, size: int, folder: str, how: str, steps: int) -> None:
    """Train for some steps on shards, save with DCP."""
    model, optimizer, mesh, params = sharded(size)
    feed(optimizer, params, range(steps), mesh)
    options = options_of(how)
    if how == "from rank 0":
        options.broadcast_from_rank0 = False
    contents: dict[str, Any] = {
        "model": get_model_state_dict(model, options=options),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }
    if how == "from rank 0":
        if rank == 0:
            torch.save(contents, os.path.join(folder, "whole.pt"))
    else:
        dcp.save(contents, checkpoint_id=folder)


def load_and_go_on(rank: int, size: int, folder: str, how: str, done: int, until: int) -> Answer:
    """Load on however many ranks there are now; making state first decides nothing."""
    model, optimizer, mesh, params = sharded(size)
    options = options_of(how)
    if how == "from rank 0":
        contents: dict[str, Any] = {"model": {}, "optimizer": {}}
        if rank == 0:
            contents = torch.load(os.path.join(folder, "whole.pt"), weights_only=True)
    else:
        with counted_collectives() as seen:
            contents = {
                "model": get_model_state_dict(model, options=options),
                "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
            }
        sums = (size, len(params), torch.float64)
        assert seen == ([sums] if size > 1 else []), "only shards' sums of squares are met for"
        assert optimizer.knobs()["step"] == 0
        dcp.load(contents, checkpoint_id=folder)
    set_model_state_dict(model, contents["model"], options=options)
    set_optimizer_state_dict(model, optimizer, contents["optimizer"], options=options)
    feed(optimizer, params, range(done, until), mesh)
    return answer(params, optimizer)


def save_replicas(rank: int, size: int, folder: str, steps: int) -> None:
    """The same of DDP, whose checkpoint is one rank's."""
    model = DistributedDataParallel(Holder())
    optimizer = AdaptiveAdamW(model.parameters(), **FED_OPTIONS)
    feed(optimizer, list(model.parameters()), range(steps), None)
    dcp.save(
        {
            "model": get_model_state_dict(model),
            "optimizer": get_optimizer_state_dict(model, optimizer),
        },
        checkpoint_id=folder,
    )


# ZeRO


def zero_around(params: Any) -> Any:
    """What is no group's entry goes into a partial: ZeRO puts the rest into its checkpoints."""
    own: Any = partial(AdaptiveAdamW, control=FED_OPTIONS["control"], seed=FED_OPTIONS["seed"])
    return ZeroRedundancyOptimizer(params, own, lr=FED_OPTIONS["lr"])


def zero(
    rank: int, size: int, numbered: bool, steps: int, groups: int
) -> tuple[list[bytes], bytes, int]:
    """ZeroRedundancyOptimizer around ours, on gradients that all ranks have."""
    params: list[Tensor] = [nn.Parameter(p) for p in whole_parameters()]
    if numbered:
        number_parameters(params)
    given: Any = params
    if groups > 1:
        cut = len(params) // groups
        given = [{"params": params[i * cut : (i + 1) * cut]} for i in range(groups)]
    optimizer = zero_around(given)
    feed(Told(optimizer), params, range(steps), None)  # type: ignore[arg-type]
    local = optimizer.optim
    owned = sum(len(group["params"]) for group in local.param_groups)
    return [bits(p) for p in params], bits(local.param_groups[0]["adaptive_state"]), owned


class Told:
    """ZeRO does not hand on `observe`; its `step` hands on `loss`."""

    def __init__(self, zero: Any) -> None:
        self.zero, self.loss = zero, None

    def observe(self, loss: Any) -> None:
        self.loss = loss

    def step(self) -> None:
        self.zero.step(loss=self.loss)


def zero_alone(steps: int) -> Answer:
    params = [nn.Parameter(p) for p in whole_parameters()]
    optimizer = AdaptiveAdamW(params, **FED_OPTIONS | {"max_grad_norm": None})
    feed(optimizer, params, range(steps), None)
    return [bits(p) for p in params], optimizer.knobs()


def zero_owns_nothing(rank: int, size: int) -> tuple[bytes, bytes, int]:
    """One parameter for two ranks: the other's optimizer has groups without any."""
    param = nn.Parameter(torch.ones(8))
    own: Any = partial(AdaptiveAdamW, control=Control(every=1))
    optimizer: Any = ZeroRedundancyOptimizer([param], own, lr=1e-2)
    for step in range(12):
        param.grad = torch.ones(8)
        # Only the rank that owns nothing observes, at a rate of 0 at first; the other is warned.
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1.0, step / 3)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "AdaptiveAdamW took 10 steps", UserWarning)
            optimizer.step(loss=2.0 - 0.1 * step if rank == 1 else None)
    local = optimizer.optim
    owned = sum(len(group["params"]) for group in local.param_groups)
    return bits(param), bits(local.param_groups[0]["adaptive_state"]), owned


def zero_save(rank: int, size: int, path: str, steps: int) -> None:
    params: list[Tensor] = number_parameters([nn.Parameter(p) for p in whole_parameters()])
    optimizer = zero_around(params)
    feed(Told(optimizer), params, range(steps), None)  # type: ignore[arg-type]
    optimizer.consolidate_state_dict(to=0)
    if rank == 0:
        torch.save({"params": params, "optimizer": optimizer.state_dict()}, path)


def zero_load(rank: int, size: int, path: str, done: int, until: int) -> list[bytes]:
    saved = torch.load(path, weights_only=True)
    params: list[Tensor] = number_parameters(saved["params"])
    optimizer = zero_around(params)
    optimizer.load_state_dict(saved["optimizer"])
    feed(Told(optimizer), params, range(done, until), None)  # type: ignore[arg-type]
    return [bits(p) for p in params]
