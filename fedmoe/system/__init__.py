"""Files, locks, digests and processes of this machine; nothing here imports torch."""
