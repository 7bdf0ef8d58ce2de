"""The base class of all sections of params.yaml, and types of their values."""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$")]


class Section(BaseModel):
    """A section of params.yaml: unknown keys, missing keys and other types are errors; values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def license_names(text: str) -> set[str]:
    """Return the licenses that a text names.

    >>> sorted(license_names("Apache-2.0, MIT and CC-BY-4.0"))
    ['Apache-2.0', 'CC-BY-4.0', 'MIT']
    """
    return {name.strip() for name in re.split(r",| and ", text) if name.strip()}
