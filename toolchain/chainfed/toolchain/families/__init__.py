"""Model families: what differs between kinds of models, one small class for each."""

from chainfed.toolchain.families.base import Family, MissingWeightError
from chainfed.toolchain.families.registry import UnsupportedModelError, family_for, supported_model_types

__all__ = ["Family", "MissingWeightError", "UnsupportedModelError", "family_for", "supported_model_types"]
