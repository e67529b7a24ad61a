"""After the runs: leaderboard, champion, and deleting what nothing needs."""
