"""Records, figures, the scorecard and the report (notebook 10)."""
