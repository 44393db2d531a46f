"""Drawing codes from the priors: functions of (networks, labels, seeds)."""
