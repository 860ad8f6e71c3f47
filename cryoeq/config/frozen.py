"""The model that all settings derive from."""

from pydantic import BaseModel, ConfigDict


class FrozenConfig(BaseModel):
    """Settings that cannot change once they are made.

    Unknown keys are errors, defaults are checked like given values, and no number may be NaN or infinite.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
