"""Run directories on disk: request, journal, states, locks and leases, and what is read from them. Starts nothing."""
