"""Where pip takes packages from, as settings of uv: setup.sh calls this if uv itself has no such setting.

pip's files and PIP_* variables  ->  NAME=VALUE of environment variables for uv, each ended by a NUL character

Clusters without internet set a mirror for pip. An address can hold a password: nothing is printed for people.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

# Variables by which somebody says where uv takes packages from.
OF_UV = (
    *("UV_CONFIG_FILE", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_INDEX", "UV_INDEX_URL"),
    "UV_OFFLINE",
)
# By pip's setting: the variable, and what separates its values.
UV_NAMES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "client-cert": ("SSL_CLIENT_CERT", " "),
    "proxy": ("ALL_PROXY", " "),
}
# The last one counts, as in `pip install`.
SECTIONS = ("global.", "install.", ":env:.")


def uv_has_settings(environment: Mapping[str, str]) -> bool:
    """Return whether uv is configured by a variable or a file."""
    if any(environment.get(name) for name in OF_UV):
        return True
    home = Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    files = (home / "uv/uv.toml", Path("/etc/uv/uv.toml"))
    return not environment.get("UV_NO_CONFIG") and any(file.exists() for file in files)


def uv_settings(listed: str, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the variables that say to uv what `pip config list` says; those that are set stay.

    >>> list(uv_settings("global.cert='first'\\n:env:.cert='second'", {}))
    [('SSL_CERT_FILE', 'second')]
    """
    settings: dict[str, str] = {}
    lines = [line.partition("=") for line in listed.splitlines()]
    for section in SECTIONS:
        settings |= {
            key.removeprefix(section): str(ast.literal_eval(value))
            for key, _, value in lines
            if key.startswith(section)
        }
    for name, (variable, separator) in UV_NAMES.items():
        if (values := settings.get(name, "").split()) and not environment.get(variable):
            yield variable, separator.join(values)
    if settings.get("extra-index-url"):  # as pip: the pinned version of a package may be in any of the indexes
        yield "UV_INDEX_STRATEGY", "unsafe-best-match"


def main() -> None:
    """Print the settings."""
    if uv_has_settings(os.environ):
        return
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    sys.stdout.write("".join(f"{name}={value}\0" for name, value in uv_settings(listed, os.environ)))


if __name__ == "__main__":
    main()
