#!/usr/bin/env bash
# torch 2.13.0, torch.distributed.checkpoint.state_dict with flatten_optimizer_state_dict=True.
#
# Expected: what an optimizer's state_dict hook adds to a parameter's state or to a group comes back in a
#   load, as it does without flattening; or the load says what it has no use for: `strict` is its default.
# Seen: it is in the flattened dictionary that is saved, and gone when the optimizer's own load is called.
#   The load asks for the names that the live optimizer's state and groups have at that moment, and no
#   others. So whatever lives only in `state_dict()` is lost in a resumed run, without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PY'
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

assert torch.__version__.startswith("2.13.0"), torch.__version__


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.register_state_dict_post_hook(add)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def add(_, saved) -> None:
    for state in saved["state"].values():
        state["extra"] = torch.tensor(7.0)
    for group in saved["param_groups"]:
        group["note"] = 7


def arrives(flatten: bool) -> tuple[bool, bool, bool]:
    """In the saved dictionary; in what the optimizer loads: of a state, of a group."""
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model, optimizer = trained()
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    names = str(saved.keys() if flatten else [*saved["state"].values(), saved["param_groups"]])
    other, resumed = trained()
    seen = []
    resumed.register_load_state_dict_pre_hook(
        lambda _, loading: seen.append(
            (
                all("extra" in state for state in loading["state"].values()),
                all("note" in group for group in loading["param_groups"]),
            )
        )
    )
    set_optimizer_state_dict(other, resumed, saved, options=options)
    return ("extra" in names and "note" in names, *seen[-1])


whole, flat = arrives(flatten=False), arrives(flatten=True)
print("saved, loaded of a state, loaded of a group:")
print("  as it is  ", whole)
print("  flattened ", flat)
assert whole == (True, True, True), "without flattening it is lost, too"
assert flat == (True, False, False), "a flattened load brings it back now"
PY
