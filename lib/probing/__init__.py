"""Dense and k-sparse probes, and their stress tests (notebooks 05 and 08)."""
