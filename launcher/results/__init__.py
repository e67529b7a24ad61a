"""What came of a submission: leaderboard, champion, and what can be deleted."""
