"""torchtitan: a container whose groups may name our optimizers."""

from __future__ import annotations

from torchtitan.components.optimizer import ParamGroupConfig

from adaptiverl import Control
from adaptiverl.integrations.torchtitan import AdaptiveOptimizersContainer
from task import make_loader, make_model

every = {"pattern": ".*", "optimizer_kwargs": {"lr": 3e-3, "weight_decay": 0.1}}
config = AdaptiveOptimizersContainer.Config(
    param_groups=[ParamGroupConfig(optimizer_name="AdaptiveAdamW", **every)],
    optimizer_factory_kwargs_by_name={"AdaptiveAdamW": {"control": Control(every=5)}},
    implementation="foreach",
)
model = make_model()
optimizers = AdaptiveOptimizersContainer(config, model_parts=[model])
losses = []
for batch in make_loader():
    optimizers.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    optimizers.observe(loss)
    optimizers.step()
    losses.append(loss.item())
