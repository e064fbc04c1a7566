"""`python -m ckptwatch` is the same as `ckptwatch`."""

from ckptwatch.cli.app import main

main()
