"""Runs of several processes, and what a cluster does to them: start, preflight, preemption, faults, submitting."""
