"""One loop for teacher, baseline and student; its checkpoints, its learning rate, its progress bar."""
