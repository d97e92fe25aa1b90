"""One step each: folders in, a folder out, a small summary back."""

import gkd_core.cores  # noqa: F401  # before a step imports torch, whose threads are told but once how to wait
