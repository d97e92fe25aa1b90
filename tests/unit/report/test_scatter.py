"""The names of students that cost alike and are as accurate stand beside each other, not on each other."""

import itertools
import re
from typing import Any

from gkd_core.report.scatter import scatter_plot


def student(name: str, top1: float, size_mb: float) -> dict[str, Any]:
    cost = {"latency_ms_p50": size_mb / 2, "size_mb": size_mb, "macs": 10**7 * size_mb}
    return {
        "name": name,
        "top1": top1,
        "low": top1 - 0.02,
        "high": top1 + 0.02,
        "filled": True,
        "ringed": False,
        **cost,
    }


def test_no_name_covers_another_and_the_same_points_give_the_same_plot():
    alike = [student(f"a student at {size}", 0.9 + size / 1e5, 5.0) for size in (64, 96, 128, 160)]
    points = [student("small", 0.8, 1.0), *alike]
    plot = scatter_plot(points, {})
    assert plot == scatter_plot(points, {})
    found = re.findall(
        r'<text style="font-size: 8.5px[^"]*text-anchor: (\w+);[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)<', plot
    )
    assert len(found) == 3 * len(points)
    boxes = []
    for anchor, x, y, name in found:
        width = 0.5 * 8.5 * len(name)  # at least
        left = float(x) - (width if anchor == "end" else 0)
        boxes.append((left, left + width, float(y), float(y) + 8.0))
    for (a, b, c, d), (e, f, g, h) in itertools.combinations(boxes, 2):
        assert b <= e or f <= a or d <= g or h <= c
