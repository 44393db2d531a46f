"""From networks to codes: functions of networks, labels and seeds."""
