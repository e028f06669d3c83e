"""How good and how fast a denoiser is, with intervals."""
