"""Driving a submission: its schedule, its supervisor, and one in the background."""
