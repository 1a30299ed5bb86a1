"""One optimizer step on GPT-2's shapes, ours and torch's side by side. ``python -m bench.step``."""
