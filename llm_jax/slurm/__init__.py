"""Slurm jobs: submit, requeue, status, cancel."""
