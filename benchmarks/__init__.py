"""Measurements of each stage against its own limit, as ratios from one run. ``python -m benchmarks`` runs them all."""
