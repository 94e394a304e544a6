"""Measure what removing visual tokens costs a vision-language model: `python run.py --help`."""

import sys

from vtprune.commands import main

if __name__ == "__main__":
    sys.exit(main())
