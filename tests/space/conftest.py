"""What this folder's tests share is importable by them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
