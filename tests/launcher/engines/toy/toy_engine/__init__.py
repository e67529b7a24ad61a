"""The smallest engine: each run is a child of the supervisor."""
