"""Entry point of `python -m rlir_ray`: it calls the command line."""

from rlir_ray.cli.commands import main

main()
