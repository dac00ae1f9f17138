"""`python -m nonsmooth` is the command `nonsmooth`."""

from nonsmooth.cli import main

main()
