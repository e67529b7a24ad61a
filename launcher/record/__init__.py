"""Run directories: requests, journals, states, locks, and what is read out of them."""
