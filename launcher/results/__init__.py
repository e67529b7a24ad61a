"""After the runs: leaderboard, champion, predictions, and deleting what nothing needs."""
