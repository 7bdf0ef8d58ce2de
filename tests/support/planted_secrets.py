"""Secrets that tests plant where a user has real ones, and a search for them in all files written."""

import base64
import hashlib
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path


def secret(name: str) -> str:
    """Return a secret that is nowhere in the source, with the characters that real ones have."""
    return f"{base64.b64encode(hashlib.sha256(name.encode()).digest()).decode()[:20]}/+="


NAMES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD",
    "SFT_EVAL_API_KEY",
    "SFT_JUDGE_API_KEY",
    "SLURM_JWT",
    "WANDB_API_KEY",
)
ENVIRON = {name: secret(name) for name in NAMES}
IN_CONFIG = {name: secret(name) for name in ("access_key_id", "secret_access_key")}
CONFIG_LOCAL = """[core]
    remote = planted
['remote "planted"']
    url = s3://planted-bucket/x
""" + "".join(f"    {name} = {value}\n" for name, value in IN_CONFIG.items())


def encodings(value: str) -> set[bytes]:
    """Return the forms in which a secret may be written: plain, in URLs, in base64 and hex."""
    raw = value.encode()
    texts = {value, urllib.parse.quote(value, safe=""), base64.b64encode(raw).decode().rstrip("="), raw.hex()}
    return {text.encode() for text in texts}


def found_in(folder: Path, *, but: frozenset[Path] = frozenset()) -> Iterator[str]:
    """Yield each planted secret found in a file below a folder or in its git history, with the place."""
    looked_at = 0
    wanted = {name: encodings(value) for name, value in ENVIRON.items()}
    wanted |= {f"config {name}": encodings(value) for name, value in IN_CONFIG.items()}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in but and ".venv" not in path.relative_to(folder).parts:
            looked_at += 1
            content = path.read_bytes()
            yield from (f"{name} in {path}" for name, forms in wanted.items() if any(form in content for form in forms))
    assert looked_at > 100, looked_at
    log = ["git", "-C", str(folder), "log", "--all", "--patch", "--binary"]
    history = subprocess.run(log, check=True, capture_output=True).stdout
    assert len(history) > 10_000
    yield from (f"{name} in git" for name, forms in wanted.items() if any(form in history for form in forms))
