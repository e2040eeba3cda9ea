"""Configuration: one frozen, validated model per YAML file.

`schema` says which keys there are; `load` reads files, applies ``key=value`` overrides, and turns every
mistake into one message with the place and the nearest known key.
"""

from repmode_cl.config.load import load_config, parse_config, shipped_config_names, shipped_config_text
from repmode_cl.config.schema import (
    Config,
    DataConfig,
    InferenceConfig,
    NetworkConfig,
    PatchConfig,
    PreprocessingConfig,
    SimulateConfig,
    TrainingConfig,
)
from repmode_cl.config.search_schema import SearchConfig
from repmode_cl.config.strategy_schema import StrategyConfig
from repmode_cl.config.stream_schema import StreamConfig

__all__ = [
    "Config",
    "DataConfig",
    "InferenceConfig",
    "NetworkConfig",
    "PatchConfig",
    "PreprocessingConfig",
    "SearchConfig",
    "SimulateConfig",
    "StrategyConfig",
    "StreamConfig",
    "TrainingConfig",
    "load_config",
    "parse_config",
    "shipped_config_names",
    "shipped_config_text",
]
