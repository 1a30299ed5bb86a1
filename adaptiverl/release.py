"""`release_gradients`: what an optimizer needs to step each parameter in the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adaptiverl.ranks.dtensors import is_dtensor
from adaptiverl.ranks.group import Ranks
from adaptiverl.step.release import SCALED, Release
from adaptiverl.step.round import Round

if TYPE_CHECKING:
    Optimizer = torch.optim.Optimizer
else:
    Optimizer = object


class Releases(Optimizer):
    """An optimizer of ours that may release gradients; it comes before torch's among the bases."""

    _round: Round
    _ranks: Ranks
    _max_grad_norm: float | None
    _released: Release | None = None

    def release_gradients(self, model: nn.Module) -> Release:
        """Step each parameter as soon as the backward pass has its gradient, and drop that.

        The loop stays as it is::

            optimizer.release_gradients(model)
            for batch in loader:
                loss = loss_fn(model(batch))
                optimizer.observe(loss)  # here, or after backward(): then it acts one step later
                loss.backward()          # steps every parameter and drops its gradient
                optimizer.step()         # ends the step
                optimizer.zero_grad()    # has nothing to do, and may stay

        So all gradients are never there at once: with bfloat16 weights that is 2 bytes less of each
        element. What is trained is the same; the price is a launch per parameter
        (method.md#gradient-release).

        What wants all gradients together does not work: clipping by the global norm, accumulation
        over several backward passes, a gradient scaler, ranks that reduce gradients after it, and
        whatever else looks at ``p.grad`` after the backward pass. Sharded parameters (FSDP2) are
        stepped when their gradients are reduced and scattered. Groups are read when the backward
        pass has its first gradient.

        Args:
            model: It holds every parameter of this optimizer. Where several models or a loss with
                parameters do, ``torch.nn.ModuleList([model, loss])``.

        Returns:
            Its ``remove()`` makes `step` step the parameters again, as it did before.

        Raises:
            TypeError: `model` is no module.
            ValueError: The optimizer clips; its ranks decide together and do not share all
                parameters; the model is wrapped in DDP; a parameter is not the model's or is listed
                twice.
            RuntimeError: Gradients are released already.
        """
        params = [p for group in self.param_groups for p in group["params"]]
        self._check_release(model, params)
        release = Release(self, lambda optimizer: optimizer._round)
        release.watch(params)
        self._released = release
        return release

    def _check_release(self, model: nn.Module, params: list[Tensor]) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"release_gradients() takes the model, a torch.nn.Module, got {model!r} of type "
                f"{type(model).__name__}"
            )
        if self._releasing() is not None:
            raise RuntimeError(
                "release_gradients() was called already: remove() what it returned first"
            )
        if self._max_grad_norm is not None:
            raise ValueError(
                f"release_gradients() and max_grad_norm={self._max_grad_norm:g} exclude each "
                "other: the norm of all gradients is known when the last one is there, and the "
                "others have been dropped by then. Leave one of them out"
            )
        self._check_ranks(model, params)
        _check_parameters(model, params)

    def _check_ranks(self, model: nn.Module, params: list[Tensor]) -> None:
        if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
            raise ValueError(
                "release_gradients() does not work with DistributedDataParallel, which reduces "
                "gradients in buckets after a parameter's hook: it would be stepped with this "
                "rank's own gradient. Leave release_gradients out, or shard the state over the "
                "ranks instead (docs/many-gpus.md)"
            )
        whole = next((i for i, param in enumerate(params) if not is_dtensor(param)), None)
        if self._ranks.size > 1 and whole is not None:
            raise ValueError(
                f"release_gradients() on {self._ranks.size} ranks that decide together takes "
                f"parameters that are sharded over them, got parameter {whole}, of shape "
                f"{tuple(params[whole].shape)}, which each rank has for itself: it would be "
                "stepped with this rank's own gradient. Shard the model with fully_shard(), leave "
                "release_gradients out, or give process_group=False where each rank trains a model "
                "of its own"
            )

    def _releasing(self) -> Release | None:
        """Who steps the parameters in their hooks; None: nobody does."""
        release = self._released
        return None if release is None or release.removed else release

    @property
    def _told(self) -> bool:
        """Something was observed for this step; one that is open may have taken it."""
        release = self._releasing()
        return self._round.controller.observed > 0 or (release is not None and release.told)

    def _refuse_scaler(self) -> None:
        """A gradient scaler may be asking.

        Raises:
            RuntimeError: Gradients are released.
        """
        if self._releasing() is not None:
            raise RuntimeError(SCALED)

    # Who calls these calls them through `super`

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The group's parameters are released, too.

        Raises:
            RuntimeError: Between the backward pass and `step`.
        """
        release = self._releasing()
        if release is not None and release.is_open:
            raise RuntimeError(
                "a parameter group cannot be added between backward() and step() while gradients "
                "are released: call step() first"
            )
        super().add_param_group(param_group)
        if release is not None:
            release.watch(self.param_groups[-1]["params"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """A round whose backward pass broke off is over."""
        release = self._releasing()
        if release is not None:
            release.give_up(self)
        super().zero_grad(set_to_none)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A round that is open is forgotten."""
        super().load_state_dict(state_dict)
        release = self._releasing()
        if release is not None:
            release.abandon()


def _check_parameters(model: nn.Module, params: list[Tensor]) -> None:
    own = {id(param) for param in model.parameters()}
    seen: set[int] = set()
    for index, param in enumerate(params):
        if id(param) not in own:
            raise ValueError(
                f"release_gradients() takes a model that has all parameters of the optimizer, got "
                f"one without parameter {index}, of shape {tuple(param.shape)}: give the model "
                "that it is of; of several, torch.nn.ModuleList([model, loss])"
            )
        if id(param) in seen:
            raise ValueError(
                f"release_gradients() takes each parameter once, got parameter {index}, of shape "
                f"{tuple(param.shape)}, twice: list it once"
            )
        seen.add(id(param))
