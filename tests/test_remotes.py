"""Remotes for real: S3, SSH and folders on loopback, two users, a bare git repository; and what goes wrong.

One tiny project is run up to its packs, and pushed; every test begins with clones of it.
"""

import asyncio
import re
import shutil
import sys
import threading
import urllib.request

import pytest

from sft.hashing import folder_digests
from tests.support.project import ROOT, clone_project, commit, run, run_script, set_params
from tests.support.servers import S3_KEYS, Proxy, client, free_port, s3_server
from tests.test_docs import shell_blocks

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]

SOURCES = ("calls", "chats")
DATA = [f"data/{stage}/{name}" for stage in ("raw", "filtered", "prepared") for name in SOURCES]
DATA += ["data/benchmarks", "data/packed", "models/base"]
BUCKET = "my-bucket"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3"), BUCKET) as server:
        yield server


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with packed data and a bare git repository as its origin."""
    folder = tmp_path_factory.mktemp("first")
    project = clone_project(folder / "project")
    run(project, "dvc", "repro", "pack")
    commit(project, "packed")
    run(folder, "git", "clone", "-q", "--bare", str(project), str(folder / "origin.git"))
    run(project, "git", "remote", "add", "origin", str(folder / "origin.git"))
    return project


@pytest.fixture(scope="module")
def environ(s3):
    return {**S3_KEYS, "AWS_ENDPOINT_URL": s3.url}


@pytest.fixture(scope="module")
def pushed(project, environ):
    """The project after the first block of the page was run in it, the environment ours."""
    script = block("AWS_ENDPOINT_URL").split("\n", 1)[1]
    run_script(project, script, **environ)
    commit(project, "remote")
    run(project, "git", "push", "-q", "origin", "main")
    return project


def block(word):
    """The block of docs/sharing.md that has a word, of those that are tested here."""
    page = (ROOT / "docs/sharing.md").read_text(encoding="utf-8")
    (found,) = [
        entry.script for entry in shell_blocks("sharing.md", page) if entry.how == "remote" and word in entry.script
    ]
    return found


def clone(project, folder):
    run(project.parent, "git", "clone", "-q", str(project.parent / "origin.git"), str(folder))
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / ".git/info/exclude").write_text("/.venv\n")
    return folder


def digests(folder):
    found = {f"{place}/{name}": digest for place in DATA for name, digest in folder_digests(folder / place).items()}
    assert len(found) > 20
    return found


def stages_run(output):
    """The stages that DVC says it ran, without the check of params.yaml, which a fresh clone runs."""
    return {line for line in output.splitlines() if line.startswith("Running stage")} - {"Running stage 'check':"}


def test_what_was_pushed_comes_back_the_same(pushed, environ, s3):
    before = digests(pushed)
    assert client(s3).list_objects_v2(Bucket=BUCKET)["KeyCount"] > 40
    shutil.rmtree(pushed / ".dvc/cache")
    for place in DATA:
        shutil.rmtree(pushed / place)
    run(pushed, "dvc", "pull", *DATA, **environ)
    assert digests(pushed) == before
    assert run(pushed, "dvc", "repro", "pack").count("didn't change") > 5


def test_keys_and_endpoint_are_nowhere_in_the_repository(pushed, environ):
    tracked = run(pushed, "git", "ls-files").splitlines()
    config = (pushed / ".dvc/config").read_text()
    assert "s3://my-bucket/nano3-sft" in config
    assert "read_timeout = 300" in config  # 15 s are too few for a big file: the client asks again, and fails
    assert not [
        name for name in tracked if environ["AWS_ENDPOINT_URL"] in (pushed / name).read_text("utf-8", "replace")
    ]


def test_a_colleague_takes_what_is_committed(pushed, environ, tmp_path):
    other = clone(pushed, tmp_path / "other")
    run(other, "dvc", "pull", *DATA, **environ)
    assert digests(other) == digests(pushed)
    assert stages_run(run(other, "dvc", "repro", "pack", **environ)) == set()


def test_a_colleague_does_not_compute_again_what_was_finished_but_not_committed(pushed, environ, tmp_path):
    run(pushed, "dvc", "exp", "run", "-n", "unknown", "-S", "pack.seed=77", "pack")
    packed = folder_digests(pushed / "data/packed")
    run(pushed, "make", "push", **environ)
    for name in ("params.yaml", "dvc.lock", "reports"):
        run(pushed, "git", "checkout", "-q", name)
    run(pushed, "dvc", "checkout", "-q", "data/packed")
    other = clone(pushed, tmp_path / "other")
    set_params(other, **{"pack.seed": 77})
    output = run(other, "dvc", "repro", "--pull", "pack", **environ)
    assert stages_run(output) == set()
    assert "Stage 'pack' is cached - skipping run" in output
    assert folder_digests(other / "data/packed") == packed != folder_digests(pushed / "data/packed")


def test_experiments_travel_through_a_bare_git_remote(pushed, environ, tmp_path):
    run(pushed, "dvc", "exp", "run", "-n", "smaller", "-S", "pack.pack_size=496", "pack")
    packed = folder_digests(pushed / "data/packed")
    run(pushed, "dvc", "exp", "push", "origin", "smaller", **environ)
    for name in ("params.yaml", "dvc.lock", "reports"):
        run(pushed, "git", "checkout", "-q", name)
    run(pushed, "dvc", "checkout", "-q", "data/packed")
    other = clone(pushed, tmp_path / "other")
    assert "smaller" in run(other, "dvc", "exp", "list", "origin", **environ)
    run(other, "dvc", "exp", "pull", "origin", "smaller", **environ)
    run(other, "dvc", "exp", "branch", "smaller", "promote/smaller")
    run(other, "git", "checkout", "-q", "promote/smaller")
    run(other, "dvc", "checkout", "data/packed", **environ)
    assert folder_digests(other / "data/packed") == packed
    assert "pack_size: 496" in (other / "params.yaml").read_text()


def test_wrong_keys_and_a_missing_bucket_are_said_and_a_rerun_completes(pushed, environ, s3, tmp_path):
    other = clone(pushed, tmp_path / "other")
    shutil.copytree(pushed / ".dvc/cache", other / ".dvc/cache")
    run(other, "dvc", "remote", "add", "-d", "--local", "new", "s3://not-there/x")
    assert "bucket does not exist" in run(other, "make", "push", fails=True, **environ)
    client(s3).create_bucket(Bucket="not-there")
    post(f"{s3.url}/moto-api/reset-auth", b"0")  # from now on it looks at keys
    try:
        output = run(other, "make", "push", fails=True, **environ)
    finally:
        post(f"{s3.url}/moto-api/reset-auth", b"1000000000")
    assert re.search("Access Key Id you provided does not exist|Forbidden", output)
    assert "docs/sharing.md" in output
    assert environ["AWS_SECRET_ACCESS_KEY"] not in output.replace("test_", "")
    nothing = {**environ, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
    assert "Unable to locate credentials" in run(other, "make", "push", fails=True, **nothing)
    run(other, "make", "push", **environ)
    assert "not-there/x" in run(other, "make", "push", **environ)


def post(url, body):
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "text/plain"})
    urllib.request.urlopen(request, timeout=120).close()


def test_an_object_that_was_changed_in_the_store_is_not_checked_out(pushed, environ, s3, tmp_path):
    other = clone(pushed, tmp_path / "other")
    objects = client(s3).list_objects_v2(Bucket=BUCKET)["Contents"]
    damaged = max((entry for entry in objects if "/files/md5/" in entry["Key"]), key=lambda entry: entry["Size"])["Key"]
    whole = client(s3).get_object(Bucket=BUCKET, Key=damaged)["Body"].read()
    client(s3).put_object(Bucket=BUCKET, Key=damaged, Body=whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        output = run(other, "dvc", "pull", *DATA, fails=True, **environ)
    finally:
        client(s3).put_object(Bucket=BUCKET, Key=damaged, Body=whole)
    assert "failed to pull data from the cloud" in output
    assert any(place in output for place in DATA), output
    run(other, "dvc", "pull", *DATA, **environ)
    assert digests(other) == digests(pushed)


def test_a_connection_cut_in_the_middle_is_said_and_a_rerun_completes(pushed, environ, s3, tmp_path):
    other = clone(pushed, tmp_path / "other")
    shutil.copytree(pushed / ".dvc/cache", other / ".dvc/cache")
    client(s3).create_bucket(Bucket="cut-off")
    run(other, "dvc", "remote", "add", "-d", "--local", "new", "s3://cut-off/x")
    proxy = Proxy(s3.url)
    through = {**environ, "AWS_ENDPOINT_URL": proxy.url, "AWS_MAX_ATTEMPTS": "1"}
    proxy.cut_after(150_000)
    run(other, "make", "push", fails=True, **through)
    there = client(s3).list_objects_v2(Bucket="cut-off").get("KeyCount", 0)
    assert proxy.cuts > 0
    proxy.restore()
    run(other, "make", "push", **through)
    assert client(s3).list_objects_v2(Bucket="cut-off")["KeyCount"] > max(25, there)
    proxy.close()
    shutil.rmtree(other / ".dvc/cache")
    run(other, "dvc", "pull", *DATA, **environ)
    assert digests(other) == digests(pushed)


# --- SSH ------------------------------------------------------------------------------------------------


@pytest.fixture
def ssh_server(tmp_path):
    """An SSH server that gives SFTP below a folder to the holder of the key; yields its port."""
    import asyncssh

    (tmp_path / "store").mkdir()
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(tmp_path / "key")
    key.write_public_key(tmp_path / "key.pub")
    port, loop = free_port(), asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    def below(connection):
        return asyncssh.SFTPServer(connection, chroot=str(tmp_path / "store"))

    async def listen():
        return await asyncssh.listen(
            "127.0.0.1",
            port,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            authorized_client_keys=str(tmp_path / "key.pub"),
            sftp_factory=below,
        )

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
    yield port
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)


def test_a_store_behind_ssh_gives_back_what_it_got(pushed, ssh_server, tmp_path):
    other = clone(pushed, tmp_path / "other")
    shutil.copytree(pushed / ".dvc/cache", other / ".dvc/cache")
    script = block("ssh://").replace("--default store", "--default --force store").replace("storage-host", "127.0.0.1")
    *setting, push = script.replace("user me", "user test").strip().splitlines()
    run_script(other, "\n".join(setting))
    for option, value in (("port", str(ssh_server)), ("keyfile", str(tmp_path / "key")), ("allow_agent", "false")):
        run(other, "dvc", "remote", "modify", "--local", "store", option, value)
    run_script(other, push)
    assert (tmp_path / "store/path/to/store/files/md5").is_dir()
    shutil.rmtree(other / ".dvc/cache")
    run(other, "dvc", "pull", *DATA)
    assert digests(other) == digests(pushed)
