"""The fields of a run, and how they are given.

metadata    what a field says of itself
fields      every field, its default, bounds and meaning
checks      what several fields must satisfy together
snapshots   the steps at which parameters are kept
sources     several texts in one field: named texts, and the weights of a mixture
conversion  ConfigDicts, command lines and JSON <-> Config
reference   all fields as a text, for --help_config
presets     published model shapes
errors      the error that a user can fix
"""

from jaxgpt.config.checks import find_problems
from jaxgpt.config.conversion import (
    NewerVersion,
    apply_overrides,
    changed_values,
    default_config,
    differences,
    from_config_dict,
    from_json,
    set_value,
    to_config_dict,
    to_json,
)
from jaxgpt.config.errors import UserError, first_line
from jaxgpt.config.fields import (
    FIELDS,
    Config,
    DataConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
    value_of,
)
from jaxgpt.config.model_fields import ModelConfig, is_off
