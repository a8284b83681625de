"""What an image is: volumes with their geometry, and the files they live in."""
