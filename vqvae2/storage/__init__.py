"""How bytes are kept: whole files, tars and shards, checkpoints, downloads and their cache."""
