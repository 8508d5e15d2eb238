"""Sparse autoencoders: trained, finetuned, compared, read as latents (notebooks 03 and 04)."""
