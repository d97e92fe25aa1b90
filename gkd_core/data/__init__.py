"""Images and labels: where they come from, the prepared format on disk, batches on the device."""
