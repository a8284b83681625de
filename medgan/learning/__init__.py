"""What is learned: networks, losses, the one loop, checkpoints and the tasks."""
