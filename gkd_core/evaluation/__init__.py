"""How good a network is on images it never saw, how sure that is, and what it costs to run."""
