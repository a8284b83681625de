"""The registry of tasks."""
