"""Driving a submission: its creation, the order in which runs start, the supervisor, one in the background."""
