"""`python -m kt` is `kt`."""

from kt.cli import main

main()
