"""What latents mean: auto-interp, latent cards, data-set debugging, refusals (notebooks 06 and 07)."""
