"""`python -m jobs` is `gencls`."""

from jobs.main import main

main()
