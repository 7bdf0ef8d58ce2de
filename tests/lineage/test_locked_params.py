"""locked_params: params in dvc.lock that a model was not trained with are named and refused."""

import pytest
from ruamel.yaml import YAML

from sft.cli import InputError
from sft.lineage.locked_params import refuse_differing
from sft.lineage.resolve import of_folder
from sft.lineage.verify import verify
from tests.support.finished_project import make_recorded


def test_params_that_dvc_read_after_an_edit_are_named_and_refused(tmp_path):
    project = make_recorded(tmp_path / "project")
    refuse_differing(project)
    lock = YAML(typ="safe").load(project / "dvc.lock")
    lock["stages"]["train"]["params"] = {"params.yaml": {"optimizer": {"lr": 0.0099}, "train": {"train_iters": 2}}}
    YAML().dump(lock, project / "dvc.lock")
    (fault,) = verify(of_folder(project))[1]
    assert (fault.path, fault.actual) == ("dvc.lock: optimizer.lr", "0.0099")
    with pytest.raises(InputError, match=r"optimizer\.lr: 0\.0099, the model has 0\.001\..*make train FORCE=1"):
        refuse_differing(project)
    (project / "models/final/lineage.json").write_text("{}")  # of another training, which dvc.lock does not name
    refuse_differing(project)
