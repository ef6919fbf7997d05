"""The records and the uninterrupted run of the tests of the loop."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from test_loop import records, whole  # noqa: F401
