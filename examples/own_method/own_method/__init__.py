"""A plugin of gkd: importing it registers a method, a network and an augmentation (docs/plugins.md)."""

from own_method import losses, networks, pictures

__all__ = ["losses", "networks", "pictures"]
