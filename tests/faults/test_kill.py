"""A run that is killed anywhere and started again is the run that was never killed, bit for bit."""

from __future__ import annotations

import numpy as np

from tests.tiny_run import checkpoint, launch_process, losses, shas, steps_saved, summary, write_experiment

DIE = "os.kill(os.getpid(), signal.SIGKILL)"

# Python source that kills the process at a chosen point, and the checkpoints that must exist afterwards.
KILL_BEFORE_THE_FIRST_STEP = f"""
from llm_jax.run import run
run.header = lambda *a: {DIE}
"""
KILL_IN_THE_MIDDLE_OF_A_LINE_BEFORE_THE_FIRST_CHECKPOINT = f"""
from llm_jax.train.metrics import MetricsWriter
write = MetricsWriter.write
def half(self, values):
    if values["step"] == 2:
        self.jsonl.write('{{"step": 2, "train_lo')
        self.jsonl.flush()
        {DIE}
    write(self, values)
MetricsWriter.write = half
"""
KILL_WHILE_SAVING_STEP_4 = f"""
from llm_jax.train.checkpoint import Checkpoints
save = Checkpoints.save
def and_die(self, state, step, info, eval_loss):
    save(self, state, step, info, eval_loss)
    if step == 4:
        {DIE}
Checkpoints.save = and_die
"""
KILL_AFTER_STEP_7 = f"""
from llm_jax.train.metrics import MetricsWriter
write = MetricsWriter.write
def and_die(self, values):
    write(self, values)
    if values["step"] == 7:
        {DIE}
MetricsWriter.write = and_die
"""
KILL_BETWEEN_THE_LAST_CHECKPOINT_AND_THE_SUMMARY = f"""
from llm_jax.run import run
run.write_summary = lambda *a: {DIE}
"""


def test_killed_at_every_kind_of_moment_and_restarted_is_bit_identical(tmp_path):
    experiment = f"experiment={write_experiment(tmp_path)}"
    a, b = tmp_path / "a", tmp_path / "b"
    assert launch_process(experiment, f"run_dir={a}").returncode == 0
    for kill, saved in (
        (KILL_BEFORE_THE_FIRST_STEP, []),
        (KILL_IN_THE_MIDDLE_OF_A_LINE_BEFORE_THE_FIRST_CHECKPOINT, []),
        (KILL_WHILE_SAVING_STEP_4, [2]),
        (KILL_AFTER_STEP_7, None),
        (KILL_BETWEEN_THE_LAST_CHECKPOINT_AND_THE_SUMMARY, [6, 8]),
    ):
        done = launch_process(experiment, f"run_dir={b}", patch=kill)
        assert done.returncode == -9, done.stderr
        if saved is not None:
            found = steps_saved(b)
            assert found == saved or (saved == [2] and found == [2, 4]), (
                found
            )  # the writer may have been faster than the kill
        assert not (b / "summary.json").exists()
    done = launch_process(experiment, f"run_dir={b}")
    assert done.returncode == 0, done.stderr
    assert "resuming at step 8" in done.stdout

    assert losses(a) == losses(b)
    assert list(losses(a)) == list(range(1, 9))
    assert shas(a) == shas(b)
    ours, theirs = checkpoint(b, 8), checkpoint(a, 8)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)
    keys = (
        "step",
        "tokens",
        "train_flops",
        "train_loss",
        "eval_loss",
        "eval_bits_per_byte",
        "parameters",
        "state",
    )
    assert {k: summary(a)[k] for k in keys} == {k: summary(b)[k] for k in keys}
    assert not [
        p for p in (b / "checkpoints").iterdir() if not p.name.isdigit()
    ]  # what the interrupted save left


def test_sigterm_from_outside_ends_with_85_and_a_checkpoint(tmp_path):
    experiment = f"experiment={write_experiment(tmp_path)}"
    stop = "from llm_jax.train.metrics import MetricsWriter\nwrite = MetricsWriter.write\n"
    stop += "MetricsWriter.write = lambda self, v: "
    stop += "(write(self, v), v['step'] == 3 and os.kill(os.getpid(), signal.SIGTERM))"
    done = launch_process(experiment, f"run_dir={tmp_path / 'b'}", patch=stop)
    assert done.returncode == 85, done.stderr
    assert done.stderr == ""
    assert "stopped by SIGTERM at step" in done.stdout
    assert max(steps_saved(tmp_path / "b")) in (3, 4)
    assert summary(tmp_path / "b")["state"] == "stopped"
