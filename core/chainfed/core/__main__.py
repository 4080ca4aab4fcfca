"""`python -m chainfed.core` is the `chainfed` command."""

from chainfed.core.cli import main

main()
