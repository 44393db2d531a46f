"""The jobs that write files: encode, sample and complete; each continues what was interrupted."""
