"""Files, processes, workers and the dependency graph: what every other package stands on."""
