"""The processes of one run: rendezvous, watching each other, stopping together, preflight checks."""
