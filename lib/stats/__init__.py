"""Metrics, bootstrap draws and estimates over samples."""
