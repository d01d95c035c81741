"""Every field of a run: its default, what it may be, and how it is given."""

from jaxgpt.config.conversion import (
    apply_overrides,
    default_config,
    differences,
    field_names,
    find_problems,
    from_config_dict,
    to_config_dict,
    to_json,
    value_of,
)
from jaxgpt.config.errors import UserError, first_line
from jaxgpt.config.fields import Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig, is_off

__all__ = [
    "Config",
    "DataConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
    "UserError",
    "apply_overrides",
    "default_config",
    "differences",
    "field_names",
    "find_problems",
    "first_line",
    "from_config_dict",
    "is_off",
    "to_config_dict",
    "to_json",
    "value_of",
]
