"""Speed, as ratios measured side by side in one run: `make bench`. What it gave stands in docs/performance.md."""

import gkd_core  # noqa: F401  # before torch, which reads once how its threads are to wait
