"""`python -m livevalue` is `livevalue`."""

from livevalue.cli import main

main()
