"""Latency benchmarking scripts."""
