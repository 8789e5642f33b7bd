"""The configuration: one tree of frozen dataclasses. A file holds related sections, with a line for every field."""

from rlir_ray.config.config import MAX_ATTEMPTS, Config
from rlir_ray.config.learner import LearnerConfig, WeightsConfig
from rlir_ray.config.messages import require
from rlir_ray.config.models import ArchitectureConfig, LoraConfig, ModelsConfig, PolicyConfig, asset_path
from rlir_ray.config.reward import AXIS_MATCHES, RULES, RewardConfig, TermConfig
from rlir_ray.config.rollout import FlowConfig, RolloutConfig, VllmConfig
from rlir_ray.config.run import CheckpointConfig, EvaluationConfig, RunConfig
from rlir_ray.config.train import (
    CHOOSING,
    REGRESSION,
    DpoConfig,
    FpoConfig,
    GrpoConfig,
    NftConfig,
    OffPolicyConfig,
    RegressionConfig,
    TrainConfig,
)
from rlir_ray.config.world import MAX_ACTION_SHIFT, DataConfig, PromptsConfig, WorldConfig

__all__ = [
    "ArchitectureConfig",
    "AXIS_MATCHES",
    "CHOOSING",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DpoConfig",
    "EvaluationConfig",
    "FlowConfig",
    "FpoConfig",
    "GrpoConfig",
    "LearnerConfig",
    "LoraConfig",
    "MAX_ACTION_SHIFT",
    "MAX_ATTEMPTS",
    "ModelsConfig",
    "NftConfig",
    "OffPolicyConfig",
    "PolicyConfig",
    "PromptsConfig",
    "REGRESSION",
    "RULES",
    "RegressionConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "TermConfig",
    "TrainConfig",
    "VllmConfig",
    "WeightsConfig",
    "WorldConfig",
    "asset_path",
    "require",
]
