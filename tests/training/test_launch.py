"""launch: one rank trains in this process, several under torchrun. tests/training/test_bridge.py trains with both."""

import os
from pathlib import Path
from typing import Any

import pytest

from sft.cli import InputError
from sft.files import read_json
from sft.training import launch
from sft.training.launch import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "runs/key", tmp_path / "base", tmp_path / "start", tmp_path / "packed")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """Commands that were started, with their environments; none runs."""
    commands: list[tuple[list[str], dict[str, str]]] = []

    def start(command: list[str], *, env: dict[str, str], pass_fds: tuple[int, ...]) -> int:
        commands.append((command, env))
        return 0

    monkeypatch.setattr(launch, "run_child", start)
    return commands


def test_one_rank_trains_in_this_process_and_reads_run_json(run: Run, started: list[Any]) -> None:
    trained: list[Run] = []
    launch.launch(run, 1, trained.append, 0)
    assert trained == [run]
    assert started == []
    assert read_json(run.folder / "run.json").keys() == {"folder", "base", "start", "packed"}
    assert launch.read_run(run.folder) == run


def test_torchrun_understands_how_ranks_are_started(run: Run, started: list[Any]) -> None:
    """torchrun reads an option --run as an abbreviation of its own --run-path."""
    from torch.distributed.run import get_args_parser

    launch.launch(run, 2, lambda run: None, 0)
    ((command, _),) = started
    options = get_args_parser().parse_args(command[3:])
    assert (options.nproc_per_node, options.module, options.training_script) == ("2", True, "sft.stages.train")
    assert options.training_script_args == ["--rank-of", str(run.folder)]


@pytest.mark.parametrize(
    ("ranks", "wanted", "given"), [(2, None, "4"), (3, None, "2"), (16, None, "1"), (2, "7", "7"), (2, "", "4")]
)
def test_ranks_share_the_cores_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, run: Run, started: list[Any], ranks: int, wanted: str | None, given: str
) -> None:
    """torchrun alone gives each rank one thread, whatever the machine has."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if wanted is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: set(range(8)))
    launch.launch(run, ranks, lambda run: None, 0)
    assert [environment["OMP_NUM_THREADS"] for _, environment in started] == [given]


def test_ranks_that_fail_are_an_error_with_the_run_s_folder(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(launch, "run_child", lambda command, **options: 3)
    with pytest.raises(InputError, match=r"runs/key: .* status 3"):
        launch.launch(run, 2, lambda run: None, 0)


def test_ranks_are_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFT_PROCESSES", "3")
    assert launch.count_ranks() == 3


@pytest.mark.parametrize("names", ["RANK", "WORLD_SIZE", "RANK WORLD_SIZE"])
def test_a_rank_of_another_launcher_is_an_error_and_does_not_wait(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    for name in names.split():
        monkeypatch.setenv(name, "2")
    with pytest.raises(InputError, match=rf"^{names.replace(' ', '=2 ')}=2: .*unset RANK WORLD_SIZE"):
        launch.count_ranks()


def test_a_launcher_of_one_rank_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("SFT_PROCESSES", "2")):
        monkeypatch.setenv(name, value)
    assert launch.count_ranks() == 2
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & set(os.environ)


@pytest.mark.parametrize("number", ["0", "two", "-1", "1.5"])
def test_sft_processes_must_be_a_number_of_processes(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setenv("SFT_PROCESSES", number)
    with pytest.raises(InputError, match=f"^SFT_PROCESSES={number}: "):
        launch.count_ranks()
