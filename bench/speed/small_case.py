"""A few steps with everything in them, small enough for a memory checker."""

from __future__ import annotations

import gpu_checks
import torch

from adaptiverl import AdaptiveAdamW, AdaptiveSGD

SIZES = (0, 1, 255, 1024, 1030, 16390)

if __name__ == "__main__":
    for dtype in (torch.float32, torch.bfloat16):
        params = gpu_checks.parameters(SIZES, dtype)
        for optimizer in (
            AdaptiveAdamW(params, 0.01, amsgrad=True, control=gpu_checks.NOISY, max_grad_norm=1.0),
            AdaptiveSGD(params, 0.01, 0.9, control=gpu_checks.ON_PARAMETER),
        ):
            gpu_checks.train(optimizer, params, 3)
            gpu_checks.expect_triton(optimizer)
    torch.cuda.synchronize()
    print("stepped")
