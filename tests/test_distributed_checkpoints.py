"""Saved on some ranks, loaded on others: knobs and noise as if training had never stopped."""

from __future__ import annotations

import copy
import math
import os
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from adaptiverl.kernels.block_tensor import Blocks
from rank_jobs import FED_OPTIONS, ZeroRedundancyOptimizer, fed_alone, feed, whole_parameters
from ranks import Crew, bits, counted_collectives
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from adaptiverl import AdaptiveAdamW, Control, codecs
from adaptiverl.distributed import number_parameters
from adaptiverl.ranks.dtensors import to_local

Answer = tuple[list[bytes], dict[str, float]]


class Holder(nn.Module):
    """Parameters of every shape that a shard can have; no forward, gradients come by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(p) for p in whole_parameters()])


def prepared(
    size: int, how: str = "", **options: Any
) -> tuple[nn.Module, Any, Any, list[nn.Parameter]]:
    mesh = init_device_mesh("cpu", (size,))
    model: nn.Module = Holder().to(options.pop("dtype", torch.float32))
    if how == "replicas":
        model = DistributedDataParallel(model)
    else:
        fully_shard(model, mesh=mesh)
    optimizer = AdaptiveAdamW(model.parameters(), **FED_OPTIONS | options)
    return model, optimizer, mesh, list(model.parameters())


BLOCKS: dict[str, Any] = {"state_dtype": torch.int8}
Moments = list[dict[str, Tensor]]


def moments(optimizer: Any) -> Moments:
    """As a checkpoint has them, put together."""
    return [
        {name: whole(state[name]) for name in ("exp_avg", "exp_avg_sq")}
        for state in optimizer.state_dict()["state"].values()
    ]


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def blocks_from_to(
    rank: int, size: int, folder: str, before: str, here: str, steps: range
) -> tuple[Moments, Moments, list[bytes]]:
    """Load what was saved as `before`, if anything; train; save as `here`; all in blocks."""
    codecs.SMALL = 0  # these processes run nothing that it is anything to
    model, optimizer, mesh, params = prepared(size, **BLOCKS)
    if before:
        contents: dict[str, Any] = {
            "model": get_model_state_dict(model),
            "optimizer": get_optimizer_state_dict(model, optimizer),
        }
        dcp.load(contents, checkpoint_id=os.path.join(folder, before))
        set_model_state_dict(model, contents["model"])
        set_optimizer_state_dict(model, optimizer, contents["optimizer"])
    loaded = moments(optimizer)
    feed(optimizer, params, steps, mesh)
    contents = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }
    dcp.save(contents, checkpoint_id=os.path.join(folder, here))
    kept = [to_local(x) for s in optimizer.state.values() for n, x in s.items() if n != "step"]
    assert all(isinstance(x, Blocks) or x.numel() == 0 for x in kept)
    return loaded, moments(optimizer), [bits(whole(p)) for p in params]


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


def save(
    rank: int, size: int, folder: str, how: str, steps: int, optimizers: dict[str, Any]
) -> None:
    """Train for some steps on shards, or on DDP's replicas; save with DCP."""
    model, optimizer, mesh, params = prepared(size, how, **optimizers)
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


def load_and_go_on(
    rank: int,
    size: int,
    folder: str,
    how: str,
    done: int,
    until: int,
    optimizers: dict[str, Any],
) -> Answer:
    """Load on however many ranks there are now; making state first decides nothing."""
    model, optimizer, mesh, params = prepared(size, **optimizers)
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


# ZeRO


def zero_around(params: Any, **options: Any) -> Any:
    """What is no group's entry goes into a partial: ZeRO puts the rest into its checkpoints."""
    codecs.SMALL = 0  # these processes run nothing that it is anything to
    given = {key: FED_OPTIONS[key] for key in ("control", "seed")} | options
    given.pop("dtype", None)
    own: Any = partial(AdaptiveAdamW, **given)
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
    return [bits(p) for p in params], bits(local._controller.memory), owned


class Told:
    """ZeRO does not hand on `observe`; its `step` hands on `loss`."""

    def __init__(self, zero: Any) -> None:
        self.zero, self.loss = zero, None

    def observe(self, loss: Any) -> None:
        self.loss = loss

    def step(self) -> None:
        self.zero.step(loss=self.loss)


def zero_alone(steps: int, dtype: torch.dtype = torch.float32, **options: Any) -> Answer:
    params = [nn.Parameter(p) for p in whole_parameters(dtype)]
    optimizer = AdaptiveAdamW(params, **FED_OPTIONS | {"max_grad_norm": None} | options)
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
    return bits(param), bits(local._controller.memory), owned


def zero_save(rank: int, size: int, path: str, steps: int, options: dict[str, Any]) -> None:
    dtype = options.get("dtype", torch.float32)
    params: list[Tensor] = number_parameters([nn.Parameter(p) for p in whole_parameters(dtype)])
    optimizer = zero_around(params, **options)
    feed(Told(optimizer), params, range(steps), None)  # type: ignore[arg-type]
    optimizer.consolidate_state_dict(to=0)
    if rank == 0:
        torch.save({"params": params, "optimizer": optimizer.state_dict()}, path)


def zero_load(
    rank: int, size: int, path: str, done: int, until: int, options: dict[str, Any]
) -> list[bytes]:
    saved = torch.load(path, weights_only=True)
    params: list[Tensor] = number_parameters(saved["params"])
    optimizer = zero_around(params, **options)
    optimizer.load_state_dict(saved["optimizer"])
    feed(Told(optimizer), params, range(done, until), None)  # type: ignore[arg-type]
    return [bits(p) for p in params]


# FSDP1


def fsdp1(rank: int, size: int, how: str, original: bool) -> list[tuple[list[bytes], bytes]]:
    """The ends of a run that goes on, and of one that FSDP1's own checkpoint was loaded into."""

    def wrapped() -> tuple[Any, AdaptiveAdamW]:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        model = FSDP(layers, device_id=torch.device("cpu"), use_orig_params=original)
        control = Control(every=1, momentum_bounds=(0.5, 0.99), noise_bounds=(0.0, 0.0))
        return model, AdaptiveAdamW(model.parameters(), lr=0.01, control=control)

    def go_on(model: Any, optimizer: AdaptiveAdamW, first: int) -> None:
        for step in range(first, first + 4):
            optimizer.zero_grad()
            drawn = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
            loss = model(drawn).square().mean()
            loss.backward()
            optimizer.observe(loss)
            optimizer.step()

    model, optimizer = wrapped()
    go_on(model, optimizer, 0)
    again, other = wrapped()
    if how == "sharded":
        saved = copy.deepcopy(FSDP.optim_state_dict(model, optimizer))
        other.load_state_dict(FSDP.optim_state_dict_to_load(again, other, saved))
    else:
        options = StateDictOptions(flatten_optimizer_state_dict=how == "flattened")
        saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
        set_optimizer_state_dict(again, other, saved, options=options)
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    ends = []
    for run in ((model, optimizer), (again, other)):
        go_on(*run, 4)
        ends.append(([bits(p) for p in run[0].parameters()], bits(run[1]._controller.memory)))
    return ends


SAVED, END = 13, 24


SHORT = {"state_dtype": torch.bfloat16}
MASTER = {"dtype": torch.bfloat16, "master_bits": 8}


@pytest.mark.parametrize(
    ("saved_on", "how", "sizes", "optimizers"),
    [
        (4, "nested", (2, 1), {}),
        (4, "nested", (2, 1), SHORT),
        (4, "nested", (2, 1), MASTER),
        (4, "flattened", (2,), MASTER),
        (4, "offloaded", (2,), {}),
        (4, "from rank 0", (2, 1), {}),
        (2, "nested", (4,), {}),
        (2, "replicas", (4,), {}),
        (2, "replicas", (4,), SHORT),
    ],
)
def test_from_some_ranks_to_others(
    crew: Crew,
    tmp_path: Path,
    saved_on: int,
    how: str,
    sizes: tuple[int, ...],
    optimizers: dict[str, Any],
) -> None:
    expected, knobs = fed_alone(END, **optimizers)
    assert knobs["noise"] > 0, "σ never rose: the noise was not put to the test"
    crew.run(saved_on, save, str(tmp_path), how, SAVED, optimizers)
    for size in sizes:
        given = (str(tmp_path), how, SAVED, END, optimizers)
        for whole, others in crew.run(size, load_and_go_on, *given):
            assert whole == expected
            assert others == knobs


def test_blocks_go_from_four_ranks_to_two_and_to_one(crew: Crew, tmp_path: Path) -> None:
    """Shards cut blocks: what is loaded is what was saved, rounded once more."""
    folder = str(tmp_path)
    steps = {"4": range(8), "2": range(8, 10), "1": range(10, 12)}
    before = ""
    saved: Moments = []
    for size, taken in steps.items():
        answers = crew.run(int(size), blocks_from_to, folder, before, size, taken)
        loads: list[Moments] = [loaded for loaded, _, _ in answers if before]
        for loaded in loads:
            for found, wanted in zip(loaded, saved, strict=True):
                for name, moment in found.items():
                    off = (moment - wanted[name]).abs()
                    assert bool((off <= 0.04 * wanted[name].abs().max()).all())
                assert bool((found["exp_avg_sq"] >= wanted["exp_avg_sq"] * 0.49).all())
        before, saved = size, answers[0][1]


def test_blocks_on_as_many_ranks_go_on_with_the_same_bits(crew: Crew, tmp_path: Path) -> None:
    folder = str(tmp_path)
    crew.run(2, blocks_from_to, folder, "", "first", range(SAVED))
    resumed = crew.run(2, blocks_from_to, folder, "first", "second", range(SAVED, END))
    through = crew.run(2, blocks_from_to, folder, "", "third", range(END))
    assert [params for _, _, params in resumed] == [params for _, _, params in through]
    for (_, one, _), (_, other, _) in zip(resumed, through, strict=True):
        for a, b in zip(one, other, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("groups", [1, 2])
def test_zero_draws_what_one_rank_draws(crew: Crew, groups: int) -> None:
    expected, _ = zero_alone(12)
    results = crew.run(2, zero, True, 12, groups)
    assert len({memory for _, memory, _ in results}) == 1
    assert sum(owned for _, _, owned in results) == len(expected)
    for params, _, owned in results:
        assert 0 < owned < len(expected), "nothing is divided: the test is of nothing"
        assert params == expected


def test_zero_without_numbers_keeps_replicas_equal_and_draws_other_noise(crew: Crew) -> None:
    expected, _ = zero_alone(12)
    (one, memory, _), (other, others_memory, _) = crew.run(2, zero, False, 12, 1)
    assert one == other != expected
    assert memory == others_memory


def test_zero_with_a_rank_that_owns_nothing(crew: Crew) -> None:
    (one, memory, _), (other, others_memory, owned) = crew.run(2, zero_owns_nothing)
    assert owned == 0
    assert one == other
    assert memory == others_memory


@pytest.mark.parametrize("options", [{}, SHORT, BLOCKS, MASTER], ids=str)
def test_zero_from_two_ranks_to_three(
    crew: Crew, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecs, "SMALL", 0)
    expected, _ = zero_alone(END, **options)
    path = str(tmp_path / "zero.pt")
    crew.run(2, zero_save, path, SAVED, options)
    for params in crew.run(3, zero_load, path, SAVED, END, options):
        assert params == expected


DAMAGED: list[tuple[str, Any, str]] = [
    ("step", math.nan, "step of parameter 1 .* must be whole"),
    ("step", "x", "step of parameter 1 .* must be one real number"),
    ("exp_avg", torch.zeros(99), "exp_avg of parameter 1 .* must be of the parameter's shape"),
    ("exp_avg_sq", None, "exp_avg_sq of parameter 1 .* must be a tensor after 3 steps"),
]


def saved_bits(optimizer: Any) -> list[bytes]:
    """This rank's shards of the state, and the controller's memory."""
    saved = optimizer.state_dict()
    entries = [x for state in saved["state"].values() for x in state.values()]
    entries += [group["adaptive_state"] for group in saved["param_groups"]]
    return [bits(x.to_local() if isinstance(x, DTensor) else x) for x in entries]


def refuse(rank: int, size: int, how: str) -> tuple[bool, list[str]]:
    """Damaged checkpoints on every rank: what was said, and whether anything changed."""
    model, optimizer, mesh, params = prepared(size)
    options = options_of(how)
    feed(optimizer, params, range(3), mesh)
    sound = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    feed(optimizer, params, range(3, 5), mesh)
    before = saved_bits(optimizer)
    said = []
    for name, value, _ in DAMAGED:
        bad: Any = copy.copy(sound)
        if how == "flattened":
            bad[f"state.weights.1.{name}"] = value
        else:
            entries = {**bad["state"]["weights.1"], name: value}
            bad["state"] = {**bad["state"], "weights.1": entries}
        try:
            set_optimizer_state_dict(model, optimizer, bad, options=options)
        except ValueError as error:
            said.append(str(error))
    return saved_bits(optimizer) == before, said


@pytest.mark.parametrize("how", ["nested", "flattened", "offloaded"])
def test_a_damaged_checkpoint_is_refused_on_shards_too(crew: Crew, how: str) -> None:
    for unchanged, said in crew.run(2, refuse, how):
        assert unchanged
        for line, (_, _, expected) in zip(said, DAMAGED, strict=True):
            assert re.search(f"{expected}.*nothing was changed$", line)


# With its original parameters, FSDP1's own format loses moments of torch.optim.AdamW, too.
@pytest.mark.parametrize(
    ("how", "original"),
    [("sharded", False), *((how, o) for how in ("nested", "flattened") for o in (False, True))],
)
def test_fsdp1s_own_checkpoints(crew: Crew, how: str, original: bool) -> None:
    for gone_on, resumed in crew.run(2, fsdp1, how, original):
        assert resumed == gone_on
