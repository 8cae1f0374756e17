"""Benchmarks: figures that a change can be held against, run by hand on a quiet machine, never as a timed test."""
