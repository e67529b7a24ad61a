"""From a job file to requests for runs. Nothing here starts anything."""
