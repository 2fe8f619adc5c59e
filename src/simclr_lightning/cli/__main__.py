"""Run ``python -m simclr_lightning.cli COMMAND ...``, the same as ``simclr COMMAND ...``."""

import sys

from simclr_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
