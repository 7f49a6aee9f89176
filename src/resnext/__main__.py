"""`python -m resnext` is the `resnext` command."""

from resnext.cli.app import main

main()
