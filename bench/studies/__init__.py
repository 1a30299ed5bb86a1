"""What is measured: short programs on top of tasks, methods and the runner."""
