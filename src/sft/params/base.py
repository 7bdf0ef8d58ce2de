"""The base class of all sections of params.yaml, and types of their values."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$")]


class Section(BaseModel):
    """A section of params.yaml: unknown keys, missing keys and other types are errors; values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
