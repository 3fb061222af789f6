"""`python -m bindsearch`."""

from bindsearch.cli import main

main()
