"""`python -m resnext` is the `resnext` command."""

from resnext.cli import main

main()
