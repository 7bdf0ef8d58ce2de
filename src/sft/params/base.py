"""The base class of all sections of params.yaml, and types of their values."""

import hashlib
import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$")]
LICENSE_CHARS = 120  # of the name of a license that a row states


class Section(BaseModel):
    """A section of params.yaml: unknown keys, missing keys and other types are errors; values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def license_names(text: str) -> set[str]:
    """Return the licenses that a text names.

    >>> sorted(license_names("Apache-2.0, MIT and CC-BY-4.0"))
    ['Apache-2.0', 'CC-BY-4.0', 'MIT']
    """
    return {name.strip() for name in re.split(r",| and ", text) if name.strip()}


def license_name(value: Any) -> str:
    """Return what a row says about its license as one line: names of a list with commas; "" if it says nothing.

    The whole text of a license is cut after LICENSE_CHARS, with a hash of it, so that it can be a key of a report.

    >>> license_name(["MIT", "CC0-1.0"]), license_name(" MIT\n"), license_name(None)
    ('MIT, CC0-1.0', 'MIT', '')
    """
    values = value if isinstance(value, list) else [value or ""]
    texts = (each if isinstance(each, str) else json.dumps(each, sort_keys=True) for each in values)
    name = ", ".join(" ".join(text.split()) for text in texts)
    if len(name) <= LICENSE_CHARS:
        return name
    return f"{name[:LICENSE_CHARS]}... ({hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]})"
