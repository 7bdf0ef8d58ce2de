"""dvc_push: the reports that the run cache names; tests/test_remotes.py pushes and pulls them."""

from sft.lineage import dvc_push


def test_reports_are_found_in_the_run_cache_and_data_is_left_to_dvc(tmp_path):
    entry = tmp_path / "runs/ab/abc/def"
    entry.parent.mkdir(parents=True)
    outs = {"data/packed": "1.dir", "reports/pack.json": "2", "reports/a.csv": "3"}
    entry.write_text("outs:\n" + "".join(f"- path: {path}\n  md5: '{md5}'\n" for path, md5 in outs.items()))
    assert dvc_push.reports(tmp_path) == {"2": "reports/pack.json", "3": "reports/a.csv"}
    assert dvc_push.reports(tmp_path / "none") == {}
