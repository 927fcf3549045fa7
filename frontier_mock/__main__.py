"""`python -m frontier_mock`, the same program as `frontier-mock`."""

import sys

from frontier_mock.cli.main import main

sys.exit(main())
