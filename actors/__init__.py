"""Everything that imports `ray`: thin shells around the plain objects of `rlir_ray`, the pools, and the driver."""
