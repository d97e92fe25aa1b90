"""Speed, as ratios measured side by side in one run: `make bench`. What it gave stands in docs/performance.md."""
