"""Several models as one: members, voting, weights, and the score of the whole."""
