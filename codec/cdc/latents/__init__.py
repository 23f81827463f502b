"""Latents of CDC: their distributions, and their integers layer by layer."""
