"""``python -m cryoeq``."""

from cryoeq.cli.main import main

main()
