"""Faster versions of what `lad.diffusion` does, exact up to rounding; off unless asked for."""
