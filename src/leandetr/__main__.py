"""`python -m leandetr`, for `torchrun -m leandetr`."""

from leandetr.cli import main

main()
