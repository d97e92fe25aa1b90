"""One step each: folders in, a folder out, a small summary back."""
