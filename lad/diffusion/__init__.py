"""The method: corruption, schedule, re-masking, denoiser, sampler, trace."""
