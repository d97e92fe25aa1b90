"""The base of every part of params.yaml."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of params.yaml. Unknown keys and wrong types are refused, never coerced or dropped."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True)
