"""What every section of params.yaml is made of: a strict section, and the kinds of values in it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$")]


class Section(BaseModel):
    """A strict section: no unknown keys, no missing keys, no coercion, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
