"""`python -m resnext` runs the `resnext` command."""

from resnext.cli.app import main

main()
