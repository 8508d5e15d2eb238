"""The companion's library: nine packages, one per step of the data flow (docs/architecture.md)."""
