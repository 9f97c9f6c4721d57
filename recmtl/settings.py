"""The base of every config class: unknown keys refused, values frozen once read.

A config class lives beside the code that it configures (a tower's in the tower's file); :mod:`recmtl.config` gathers
them into the one YAML that describes a run.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

__all__ = ["Name", "Record", "Settings"]

_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


class Settings(BaseModel):
    """A config class: refuses unknown keys and numbers that are not finite, is immutable, and documents its fields by
    the docstrings under them."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


class Record(Settings):
    """A class of the same kind for what recmtl measures itself, which may be infinite or undefined."""

    model_config = ConfigDict(allow_inf_nan=True)


def _check_name(name: str) -> str:
    if not _NAME.match(name):
        raise ValueError(f"{name!r} must be letters, digits and underscores, and not begin with a digit")
    return name


Name = Annotated[str, AfterValidator(_check_name)]
"""A name that ends up in file, column and parameter names: letters, digits and underscores."""
