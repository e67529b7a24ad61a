"""Running a submission: creation, scheduler, supervisor, and a supervisor in the background."""
