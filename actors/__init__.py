"""All code that imports `ray`: thin shells around the plain objects of `rlir_ray`, the pools, and the driver."""

from rlir_ray.run.environment import ensure_home

# Call this before the first import of `ray.train`, which fails without a home folder.
ensure_home()
