"""Makes the zoo of models importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # `zoo` is a package beside these tests
