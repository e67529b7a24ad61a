"""Run directories on disk: request, journal, states, locks, leases, predictions and figures. Starts no process."""
