"""What good means."""
