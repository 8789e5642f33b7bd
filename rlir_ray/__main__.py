"""`python -m rlir_ray`."""

from rlir_ray.cli.commands import main

main()
