"""Profiles and headless runs of the notebooks, one by one or as a sweep."""
