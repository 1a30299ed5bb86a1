"""What a GPU does with the step: ``bench/gpu.sh``."""
