"""What a registered version keeps, and where: register writes it, the gate, a server and `gkd verify` read it."""

DEPLOY = "deploy"  # the deploy folder
GATE = "gate"  # what later decisions look at
CORRECT = "correct.npy"  # there: whether the version was right on each test image, for a later challenger
CORRECT_TAG = "gkd.correct"  # the version's tag with the sha256 of that
