"""`python -m bindsearch.cli`."""

from bindsearch.cli import main

main()
