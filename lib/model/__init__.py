"""Language models, their chat templates and their activations (notebook 02)."""
