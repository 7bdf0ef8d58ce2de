import os
import subprocess
import sys

import pytest

from tests.support.stub_stage import SRC, STAGE, call


def test_a_source_stage_gets_its_source_and_wants_one(tmp_path):
    source_stage = "run_source_stage(one, __doc__)"
    assert call(tmp_path, "pass", "--source", "bfcl", call=source_stage).stdout == "source bfcl\n"
    assert call(tmp_path, "pass", call=source_stage, DVC_STAGE="filter@bfcl").stdout == "source bfcl\n"
    assert call(tmp_path, "pass", "--source", "a", call=source_stage, DVC_STAGE="b@c").stdout == "source a\n"
    missing = call(tmp_path, call=source_stage)
    assert missing.returncode == 2
    assert "--source" in missing.stderr


def test_help_is_the_module_s_docstring_under_its_real_name(tmp_path):
    done = call(tmp_path, "raise SystemExit(9)", "--help")
    assert done.returncode == 0
    assert "python -m stage" in done.stdout
    assert "What this stage does." in done.stdout
    assert call(tmp_path, "pass", "--unknown").returncode == 2


def test_a_stage_checks_all_of_params_yaml_before_it_runs(tmp_path):
    (tmp_path / "stage.py").write_text(STAGE.format(body="echo('ran')", call="run_stage(main, __doc__)"))
    params = (SRC.parent / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(params.replace("  train_iters:", "  train_itres:"))
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run(
        [sys.executable, "-m", "stage"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "train.train_itres" in done.stderr


@pytest.mark.parametrize("stage", ["fetch", "filter", "prep", "pack", "train", "eval"])
def test_help_of_a_stage_needs_no_heavy_import(stage):
    heavy = "{'torch', 'transformers', 'megatron', 'mlflow', 'pyarrow'}"
    code = (
        f"import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('sft.stages.{stage}', run_name='__main__')\n"
        f"except SystemExit as end: assert not end.code\n"
        f"assert not (found := {heavy} & set(sys.modules)), found"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_a_worker_of_prep_loads_no_params():
    code = "import sys, sft.stages.prep; print({'pydantic', 'ruamel.yaml', 'sft.params.schema'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
