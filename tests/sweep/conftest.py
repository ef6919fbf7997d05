"""The records that trials of these tests are trained on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from test_loop import records  # noqa: F401
