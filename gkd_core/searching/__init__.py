"""Searching settings on validation: a study is drawn, trained, stopped early, and goes on where it was."""
