"""What a run folder takes for the same run."""

from __future__ import annotations

import pytest

from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment, override, resolved, to_yaml
from llm_jax.run.run_folder import check_same_run, write_config


def test_a_run_of_before_a_key_was_there_goes_on_with_its_default_and_with_no_other_value(tmp_path):
    experiment = resolved(Experiment(run_dir=str(tmp_path)))
    yaml = to_yaml(experiment)
    older = "".join(
        line + "\n"
        for line in yaml.splitlines()
        if "parametrization" not in line and (" base_" not in line or "base_batches" in line)
    )
    assert older.count("\n") == yaml.count("\n") - 4
    write_config(tmp_path, older)
    assert check_same_run(tmp_path, yaml) == []
    other = override(experiment, [("model.parametrization", "mup"), ("model.base_embed", "128")])
    with pytest.raises(
        UserError,
        match=r"holds a run of another configuration .model.parametrization: standard → mup; "
        r"model.base_embed: unset → 128",
    ):
        check_same_run(tmp_path, to_yaml(other))
