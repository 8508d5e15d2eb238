"""Labelled prompts and the texts that SAEs are trained on (notebook 01)."""
