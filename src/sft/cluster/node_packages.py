"""Check and record the packages and the hardware of a node, in the node check of a job. Standard library only.

code/packages.txt: the pins of the lineage key  ->  logs/<job>-<restart>/packages.json: what computes this attempt
                                                    packages.json: what computed the first attempt of the run
                                                    logs/<job>-<restart>/hardware-<node>.json

    SFT_RUN=... SFT_CODE=... SFT_PACKAGES=exact python -m sft.cluster.node_packages

`packages: exact` in the cluster file: versions are those of the key, up to the build after a + (cpu, cu130), and an
attempt computes with the packages of the first one. `packages: recorded`: any version, such as the pre-releases in
NVIDIA's containers. Both: the nodes of an attempt have the same packages.
"""

import importlib.metadata
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from sft.lineage.hardware import machine

# Kernels and libraries that compute where they are installed; the lineage key has none of them.
KERNELS = ("transformer-engine", "mamba-ssm", "causal-conv1d", "flash-attn", "deep-ep", "triton", "nvidia-nccl-cu13")
NONE = "none"


def installed(names: list[str]) -> dict[str, str]:
    """Return the versions of packages by name; NONE for one that is not installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = NONE
    return versions


def check_pins(pins: dict[str, str], versions: dict[str, str], policy: str) -> list[str]:
    """Return what is wrong with the versions, a line for each package."""
    if policy == "recorded":
        return [f"{name}: not installed" for name in pins if versions[name] == NONE]
    return [
        f"{name}: found {versions[name]}, expected {pin}"
        for name, pin in pins.items()
        if versions[name].partition("+")[0] != pin.partition("+")[0]
    ]


def compare_or_write(file: Path, versions: dict[str, str]) -> list[str]:
    """Write the versions, unless another node or attempt did; return what differs from its versions."""
    partial = file.with_name(f".{file.name}-{socket.gethostname()}-{os.getpid()}")
    partial.write_text(json.dumps(versions, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    try:
        os.link(partial, file)  # whole, and only once
    except FileExistsError:
        pass
    finally:
        partial.unlink()
    earlier = json.loads(file.read_text(encoding="utf-8"))
    names = sorted(earlier | versions)
    return [
        f"{name}: found {versions.get(name, NONE)}, earlier {earlier.get(name, NONE)}"
        for name in names
        if versions.get(name, NONE) != earlier.get(name, NONE)
    ]


def record_hardware(attempt: Path) -> None:
    """Write what this node has, whole or not at all: a model is published with what every attempt wrote."""
    file = attempt / f"hardware-{socket.gethostname()}.json"
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(machine(), indent=2) + "\n", encoding="utf-8")
    partial.replace(file)


def recorded(run: Path) -> dict[str, Any]:
    """Return what computed a run's jobs, as lineage.json has it; {} of a run without a job.

    `node_packages`: by attempt, <job>-<restart>; `node_hardware`: by attempt and node; `hardware`: that of the newest
    attempt, with the GPUs of all its nodes.
    """
    packages, nodes = {}, {}
    folders = [file.parent for file in (run / "logs").glob("*-*/packages.json")]
    for folder in sorted(folders, key=lambda folder: [int(number) for number in folder.name.split("-")]):
        packages[folder.name] = _read(folder / "packages.json")
        of_attempt = {file.stem.removeprefix("hardware-"): _read(file) for file in folder.glob("hardware-*.json")}
        nodes[folder.name] = dict(sorted(of_attempt.items()))
    if not packages:
        return {}
    facts: dict[str, Any] = {"node_packages": packages, "node_hardware": nodes}
    if newest := list(list(nodes.values())[-1].values()):
        facts["hardware"] = {**newest[0], "gpus": [gpu for node in newest for gpu in node["gpus"]]}
    return facts


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def main() -> None:
    """Check this node and record its packages. Exit status 1: they are refused."""
    if missing := [name for name in ("SFT_RUN", "SFT_CODE", "SFT_PACKAGES") if name not in os.environ]:
        refuse([], f"{', '.join(missing)}: not set. The node check of a job runs this.")
    run, code, policy = Path(os.environ["SFT_RUN"]), Path(os.environ["SFT_CODE"]), os.environ["SFT_PACKAGES"]
    lines = (code / "packages.txt").read_text(encoding="utf-8").split()
    pins = dict(line.split("==") for line in lines)
    versions = installed([*pins, *KERNELS])
    if wrong := check_pins(pins, versions, policy):
        advice = "" if policy == "recorded" else "; to accept and record what the nodes have: packages: recorded"
        refuse(wrong, f"packages differ from those in the lineage key ({policy}){advice}")
    if different := compare_or_write(run / "logs/latest/packages.json", versions):
        refuse(different, "packages differ from those of another node of this attempt")
    different = compare_or_write(run / "packages.json", versions)
    if different and policy != "recorded":
        advice = "to accept and record it: packages: recorded; to start over: remove its checkpoints and packages.json"
        refuse(different, f"packages differ from those of the first attempt of {run.name}; {advice}")
    for line in different:
        sys.stdout.write(f"note: {line}\n")
    record_hardware(run / "logs/latest")
    sys.stdout.write(f"packages: {policy}; written to {(run / 'logs/latest').resolve()}/packages.json\n")


def refuse(problems: list[str], message: str) -> None:
    """Print what is wrong and end with exit status 1."""
    sys.stdout.write("".join(f"error: {line}\n" for line in [*problems, message]))
    sys.exit(1)


if __name__ == "__main__":
    main()
