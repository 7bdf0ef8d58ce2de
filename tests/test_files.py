import contextlib
import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft import files
from sft.files import project_root, publish_file, publish_folder, read_json, resolve_repo_file, write_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_with_all_its_files(tmp_path):
    target = tmp_path / "deep" / "out"
    with publish_folder(target) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a").write_text("new")
        assert not target.exists()
    assert (target / "sub" / "a").read_text() == "new"
    assert names(target.parent) == ["out"]


def test_a_folder_is_replaced_not_merged(tmp_path):
    target = tmp_path / "out"
    for name in ("old", "new"):
        with publish_folder(target) as partial:
            (partial / name).touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["out"]


def test_a_file_or_a_link_in_the_place_of_a_folder_leaves_nothing_behind(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with publish_folder(tmp_path / name) as partial:
            (partial / "new").touch()
        assert names(tmp_path / name) == ["new"]
    assert names(tmp_path) == ["elsewhere", "file", "link"]
    assert names(tmp_path / "elsewhere") == []


def test_a_file_system_that_cannot_exchange_gets_the_new_folder_too(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RENAME_EXCHANGE", 1 << 30)  # a flag that no kernel knows: EINVAL
    target = tmp_path / "out"
    for name in ("old", "new"):
        with publish_folder(target) as partial:
            (partial / name).touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError("a fault"), OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, error):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    (tmp_path / "file").write_text("old")
    with contextlib.suppress(type(error)), publish_folder(tmp_path / "folder") as partial:
        (partial / "half").touch()
        raise error
    with contextlib.suppress(type(error)), publish_file(tmp_path / "file") as partial:
        partial.write_text("half")
        raise error
    assert not partial.exists()
    assert names(tmp_path) == ["file", "folder"]
    assert names(tmp_path / "folder") == ["old"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize(("code", "name"), [(errno.ENOSPC, "out"), (errno.ECONNRESET, None)])
@pytest.mark.parametrize("publish", [publish_folder, publish_file, files.scratch_folder])
def test_an_error_of_the_disk_without_a_file_names_the_output(tmp_path, publish, code, name):
    with pytest.raises(OSError, match="Arrow") as caught, publish(tmp_path / "out"):
        raise OSError(code, "Arrow")
    assert caught.value.filename == (name and str(tmp_path / name))


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_stays(tmp_path, capsys):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = os.uname().nodename
    (tmp_path / f".out.partial-{here}-{ended.pid}").mkdir()
    (tmp_path / f".out.partial-{here}-{ended.pid}" / "half").touch()
    (tmp_path / f".out.partial-{here}-{os.getppid()}").mkdir()
    (tmp_path / f".out.partial-elsewhere-{ended.pid}").mkdir()
    (tmp_path / f".other.partial-{here}-{ended.pid}").touch()
    with publish_folder(tmp_path / "out"):
        pass
    assert set(names(tmp_path)) == {
        f".other.partial-{here}-{ended.pid}",
        f".out.partial-elsewhere-{ended.pid}",
        f".out.partial-{here}-{os.getppid()}",
        "out",
    }
    other = tmp_path / f".out.partial-elsewhere-{ended.pid}"
    assert f"{other}: of process {ended.pid} on elsewhere. " in capsys.readouterr().out


WRITER = """
import sys
from pathlib import Path
from sft.files import publish_file, publish_folder
place = Path(sys.argv[1])
for round in range(1_000_000):
    with publish_folder(place / "folder") as partial:
        for name in range(5):
            (partial / str(name)).write_text(str(round) * 1000)
    with publish_file(place / "file") as partial:
        partial.write_text((str(round) + ".") * 1000)
    if round == 0:
        print("started", flush=True)
"""


def test_killed_at_any_moment_the_old_or_the_new_stands_whole(tmp_path):
    draw = random.Random(1)
    seen = set()
    for _ in range(12):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"started\n"
        time.sleep(draw.random() / 4)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        texts = [path.read_text() for path in sorted((tmp_path / "folder").iterdir())]
        assert len(texts) == 5
        assert len(set(texts)) == 1
        parts = (tmp_path / "file").read_text().split(".")
        assert parts.pop() == ""
        assert len(parts) == 1000
        assert len(set(parts)) == 1
        seen.add(parts[0])
    assert len(seen) > 1  # killed in different rounds, so not always at the same place
    with publish_folder(tmp_path / "folder"), publish_file(tmp_path / "file") as file:
        file.touch()
    assert names(tmp_path) == ["file", "folder"]


@given(JSON)
def test_json_is_read_as_it_was_written(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "x.json"
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair: no text, and no file can hold it
        return
    write_json(path, value)
    assert read_json(path) == value


def test_json_has_the_same_bytes_whatever_the_order_of_its_keys(tmp_path):
    write_json(tmp_path / "one", {"b": 1, "a": "é"})
    write_json(tmp_path / "two", {"a": "é", "b": 1})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == b'{\n  "a": "\xc3\xa9",\n  "b": 1\n}\n'


def test_a_file_of_this_folder_goes_before_the_one_that_the_repository_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_repo_file("templates/nano3.jinja").read_text().startswith("{#-")
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/nano3.jinja").write_text("mine")
    assert resolve_repo_file("templates/nano3.jinja").read_text() == "mine"
    assert resolve_repo_file("nowhere.jinja") == Path("nowhere.jinja")


def test_what_a_stage_wrote_in_the_repository_is_not_that_of_another_folder(tmp_path, monkeypatch):
    for name in ("models/base/chat_template.jinja", "templates/own.jinja"):
        (tmp_path / "repository" / name).parent.mkdir(parents=True)
        (tmp_path / "repository" / name).write_text("theirs")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    monkeypatch.setattr(files, "REPOSITORY", tmp_path / "repository")
    assert resolve_repo_file("templates/own.jinja").read_text() == "theirs"
    assert resolve_repo_file("models/base/chat_template.jinja") == Path("models/base/chat_template.jinja")


def test_runs_stay_in_the_repository_when_dvc_works_in_a_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert project_root() == tmp_path
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")
    assert project_root() == Path("/elsewhere")


def test_one_process_holds_a_lock_and_it_ends_with_that_process(tmp_path):
    lock = tmp_path / "new" / "lock"
    code = (
        "import sys, time; from pathlib import Path; from sft.files import file_lock\n"
        "with file_lock(Path(sys.argv[1]), 0) as held:\n    print(held, flush=True); time.sleep(900)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    holder = subprocess.Popen([sys.executable, "-c", code, lock], env=environment, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "True\n"
    with files.file_lock(lock, 0.1) as held:
        assert not held
    holder.kill()
    holder.communicate()
    with files.file_lock(lock, 0) as held:
        assert held


def test_without_flock_a_file_is_the_lock_until_its_process_ends(tmp_path, monkeypatch):
    def no_flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_flock)
    lock, created = tmp_path / "lock", tmp_path / "lock.held"
    with files.file_lock(lock, 0) as first, files.file_lock(lock, 0.1) as second:
        assert (first, second) == (True, False)
        assert created.exists()
    assert not created.exists()
    for owner, is_free in ((f"{os.uname().nodename} 4194305", True), ("another 4194305", False)):  # above any pid
        created.write_text(owner)
        with files.file_lock(lock, 0.2) as held:
            assert held is is_free
