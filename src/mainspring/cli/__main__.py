"""``python -m mainspring.cli``: how our own processes start one another, whatever the PATH."""

from mainspring.cli.main import program

program()
