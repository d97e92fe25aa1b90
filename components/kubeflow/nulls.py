"""Kubeflow knows no null: its compiler has none in an argument, its launcher none in an artifact's metadata."""

from typing import Any


def without_null(content: Any) -> Any:
    """JSON content without what is null, at any depth.

    >>> without_null({"alias": None, "counts": {"train": 3, "test": None}, "seen": [None, 1]})
    {'counts': {'train': 3}, 'seen': [1]}
    """
    if isinstance(content, dict):
        return {key: without_null(value) for key, value in content.items() if value is not None}
    if isinstance(content, list):
        return [without_null(value) for value in content if value is not None]
    return content
