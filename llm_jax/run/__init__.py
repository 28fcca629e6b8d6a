"""One run, from an `Experiment` to a run folder."""
