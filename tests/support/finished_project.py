"""A small project after a finished run: data, models, reports, dvc.lock and DVC's cache, all consistent.

Nothing is trained: each file has a few bytes instead of real data.
"""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from sft.files import write_json
from sft.hashing import folder_digest, folder_digests
from sft.lineage.key import Lineage
from sft.lineage.record import lineage_json
from sft.params.data import Download

KEYED = {"torch": "1", "megatron-core": "1", "megatron-bridge": "1", "transformers": "1", "tokenizers": "1"}
KEYED |= {"numpy": "1", "pyarrow": "1"}
SOURCES = {
    "calls": {"domain": "tool-use", "license": "Apache-2.0", "origin": "a benchmark", "uri": "pypi://a==1/b.json"},
    "chats": {"domain": "chat", "license": "MIT and CC-BY-4.0", "uri": "hf://datasets/owner/chats/x.jsonl"},
}
COUNTS = {"conversations": 9, "tokens": 90, "trained_tokens": 45}
BASE = Download(uri="hf://models/owner/base@" + "b" * 40, license="Apache-2.0")
ANSWER = {"stopped": True, "text": "4"}


def make_recorded(folder: Path, lr: float = 1e-3, commit: str | None = None) -> Path:
    """Fill a folder; two such projects differ in `lr` and in the weights that depend on it."""
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (folder / "params.yaml").write_text(f"optimizer: {{lr: {lr}}}\n")
    for name, source in SOURCES.items():
        raw = text(folder / f"data/raw/{name}/rows.jsonl", f"rows of {name}")
        listed = [{"path": "rows.jsonl", "bytes": raw.stat().st_size, "rows": 10, "sha256": sha256(raw)}]
        report(folder, f"fetch/{name}", 10, {}, files=listed, sha256="5" * 64, **source)
        text(folder / f"data/filtered/{name}/kept-00000.parquet", f"kept of {name}")
        report(folder, f"filter/{name}", 10, {"no-answer": 1}, rows_found=10)
        text(folder / f"data/prepared/{name}/0.parquet", f"samples of {name}")
        report(folder, f"prep/{name}", 9, {}, samples=9, tokens=90, trained_tokens=45, template_sha256="7" * 64)
    text(folder / "data/benchmarks/items.jsonl", "what gsm8k asks")
    sets = {"gsm8k": {"uri": "pypi://b==2/test.jsonl", "sha256": "6" * 64, "license": "MIT", "texts": 2, "files": []}}
    report(folder, "fetch/benchmarks", 2, {}, benchmarks=sets, digests=folder_digests(folder / "data/benchmarks"))
    text(folder / "models/base/model.safetensors", "base weights")
    report(folder, "fetch/model", 1, {}, uri="hf://models/owner/base", license="Apache-2.0", parameters=1000)
    packed = {
        name: {**COUNTS, "domain": source["domain"], "license": source["license"]} for name, source in SOURCES.items()
    }
    text(folder / "data/packed/training/0.parquet", "packs")
    write_json(folder / "data/packed/metadata.json", {"pack_size": 64, "sources": packed, "digests": {"training": "d"}})
    splits = {"training": {"packs": 3, "tokens": 180, "trained_tokens": 90}}
    report(folder, "pack", 18, {}, splits=splits, tokens=180, trained_tokens=90, samples={"rows_out": 18})
    params = {"optimizer": {"lr": lr}, "train": {"train_iters": 2}, "checkpoint": {"pretrained_checkpoint": None}}
    lineage = Lineage(
        folder_digest(folder / "data/packed"), folder_digest(folder / "models/base"), params, "c" * 64, KEYED
    )
    final = folder / "models/final"
    text(final / "model.safetensors", f"weights of lr {lr}")
    record = {
        **lineage_json(lineage, "0" * 32, folder, BASE, None, (commit or "a" * 40, False)),
        "packages": KEYED,
    }
    write_json(final / "lineage.json", {**record, "files": folder_digests(final)})
    report(folder, "train", 3, {"not-reached": 1}, train_loss=0.5, iterations=2, lineage_key=lineage.key)
    text(folder / "reports/train_loss.csv", f"iteration,loss,lr\n1,0.9,{lr}\n2,{0.5 + lr},{lr}\n")
    text(folder / "reports/validation_loss.csv", "iteration,validation_loss\n2,0.7\n")
    measured = {"loss": 1.0, "loss_by_domain": {"chat": 1.0}, "stopped": 0.5}
    after = {"loss": 0.5 + lr, "loss_by_domain": {"chat": 0.5}, "stopped": None}
    write_json(folder / "reports/eval.json", {"before": measured, "after": after})
    answer = {"conversation_id": "1", "kind": "chat", "question": "2+2?", "source": "chats", "before": ANSWER}
    (folder / "reports/answers.jsonl").write_text(
        json.dumps({**answer, "after": {**ANSWER, "text": f"<b>{lr}"}}) + "\n"
    )
    write_lock(folder, lr)
    return folder


def write_lock(folder: Path, lr: float) -> None:
    """Write dvc.lock for the files in a folder, and the outputs into DVC's cache."""
    stages: dict[str, Any] = {}
    for name in SOURCES:
        stages[f"fetch@{name}"] = stage(folder, [f"data/raw/{name}", f"reports/fetch/{name}.json"])
        stages[f"filter@{name}"] = stage(folder, [f"data/filtered/{name}"], ["data/benchmarks", f"data/raw/{name}"])
        stages[f"prep@{name}"] = stage(folder, [f"data/prepared/{name}"], [f"data/filtered/{name}"])
    stages["fetch-benchmarks"] = stage(folder, ["data/benchmarks", "reports/fetch/benchmarks.json"])
    stages["fetch-model"] = stage(folder, ["models/base"])
    stages["pack"] = stage(folder, ["data/packed", "reports/pack.json"], ["data/prepared"])
    stages["train"] = stage(folder, ["models/final", "reports/train.json"], ["data/packed", "models/base"])
    stages["train"]["params"] = {"params.yaml": {"optimizer": {"lr": lr}}}
    stages["eval"] = stage(folder, ["reports/answers.jsonl", "reports/eval.json"], ["models/final"])
    YAML().dump({"schema": "2.0", "stages": stages}, folder / "dvc.lock")


def stage(folder: Path, outs: list[str], deps: list[str] | None = None) -> dict[str, Any]:
    """Describe a stage as dvc.lock does."""
    return {
        "cmd": "run",
        "deps": [{"path": path, "md5": cache(folder, path)} for path in deps or []],
        "outs": [{"path": path, "md5": cache(folder, path)} for path in outs],
    }


def cache(folder: Path, path: str) -> str:
    """Put an out into DVC's cache; return its digest."""
    place = folder / path
    if place.is_file():
        return keep(folder, place.read_bytes(), "")
    files = sorted(file for file in place.rglob("*") if file.is_file())
    listed = [
        {"md5": keep(folder, file.read_bytes(), ""), "relpath": file.relative_to(place).as_posix()} for file in files
    ]
    return keep(folder, json.dumps(listed, sort_keys=True).encode(), ".dir")


def keep(folder: Path, content: bytes, suffix: str) -> str:
    """Write an object of the cache; return its digest."""
    md5 = hashlib.md5(content).hexdigest() + suffix
    place = folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return md5


def report(folder: Path, name: str, rows: int, rejected: dict[str, int], **more: Any) -> None:
    """Write a report of a stage."""
    counts = {"rows_in": rows, "rows_out": rows - sum(rejected.values()), "rejected": rejected}
    write_json(folder / f"reports/{name}.json", {**counts, **more})


def text(path: Path, content: str) -> Path:
    """Write a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def commit_all(folder: Path) -> str:
    """Commit all that git does not ignore; return the commit."""
    (folder / ".gitignore").write_text("/data/\n/models/\n/runs/\n/reports/answers.jsonl\n/.dvc/cache/\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True, capture_output=True)
    head = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    return subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()
