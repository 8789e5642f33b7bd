"""What learner ranks load, imported before they are forked: each rank would take seven seconds of a CPU for it."""

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
import numba  # noqa: F401
import torch._dynamo  # noqa: F401

import rlir_ray.learner.deepspeed  # noqa: F401
from tests.fakes import tiny_world_model

# transformers loads the modules of a model when the model is made.
tiny_world_model()
