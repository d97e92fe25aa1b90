"""How steps are chained and where they run."""
