"""Benchmarks: ``make bench`` measures afresh and writes ``data/bench/<name>.json``.

Peers run in the same process and in turn with ours, round by round; only their ratios are compared between machines.
"""
