"""Contract tests of plug-ins, which third parties can call in their own tests.

Each check raises an AssertionError that names the broken rule. The checks use small models and videos and take seconds
on a CPU.
"""

from rlir_ray.testing.inputs import check_idm, check_source
from rlir_ray.testing.policies import check_family, check_objective
from rlir_ray.testing.rewards import check_reward, check_reward_term
from rlir_ray.testing.samples import sample_actions, sample_groups, sample_policy, sample_prompts, sample_videos

__all__ = [
    "check_family",
    "check_idm",
    "check_objective",
    "check_reward",
    "check_reward_term",
    "check_source",
    "sample_actions",
    "sample_groups",
    "sample_policy",
    "sample_prompts",
    "sample_videos",
]
