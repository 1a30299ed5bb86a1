"""The parameter step: Triton kernels, and the same in plain torch (`reference`)."""
