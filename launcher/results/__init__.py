"""Results of a submission: leaderboard and champion. Also deletes files that nothing needs."""
