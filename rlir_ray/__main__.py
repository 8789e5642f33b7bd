"""`python -m rlir_ray`."""

from rlir_ray.cli import main

main()
