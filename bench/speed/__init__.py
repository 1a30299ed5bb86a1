"""One optimizer step, ours and torch's side by side: ``python -m bench.step``, ``bench/gpu.sh``."""
