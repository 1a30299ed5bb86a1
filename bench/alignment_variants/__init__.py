"""The alignment law's development lab: every variant that was tried, on small tasks."""
