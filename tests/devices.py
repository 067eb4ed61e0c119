"""The torch device of tests: the CPU, unless FINWIDTH_TEST_DEVICE names another that this machine has.

FINWIDTH_TEST_DEVICE=cuda scripts/test -k "device" -n 0
"""

from __future__ import annotations

import os

DEVICE = os.environ.get("FINWIDTH_TEST_DEVICE", "cpu")
