"""What the papers define, in plain torch: no Lightning, no files, no YAML."""
