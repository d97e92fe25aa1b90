"""The commands of `gkd`, a file for each group."""
