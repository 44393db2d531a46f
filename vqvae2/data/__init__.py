"""What training reads: images, latents, and the order in which they come."""
