"""`python -m fusetune` is the command `fusetune`."""

from fusetune.cli import main

main()
