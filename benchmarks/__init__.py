"""Speed, as ratios measured side by side: `make bench` asks `questions.QUESTIONS`, `python -m benchmarks NAME` one.

What it gave stands in docs/performance.md. Other files here are programs of their own, which need more than a checkout
or take longer: photos, serving, long_json, few_labels, long_tailed; efficientnet_lite writes weights.
"""

import gkd_core  # noqa: F401  # before torch, which reads once how its threads are to wait
