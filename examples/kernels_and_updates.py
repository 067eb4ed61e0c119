"""Two pictures: kernels of points on a circle at three widths, and the first move of the kernel over depth.

    python examples/kernels_and_updates.py [FOLDER]

Writes circle and update-over-depth, as PNG and PDF, into the folder (docs/images holds them); half a minute, 2 GiB.
"""

from __future__ import annotations

import sys
from pathlib import Path

from finwidth import plots

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
folder.mkdir(parents=True, exist_ok=True)
circle = plots.kernel_on_a_circle([10**2, 10**4, 10**6], depth=4)
update = plots.update_over_depth([16, 64, 256], [2, 4, 8, 16, 32, 64], [1.0] * 8)
for name, figure in (("circle", circle), ("update-over-depth", update)):
    print("Wrote", *plots.save(figure, folder / name))
