"""Ensembles: members, voting, weights, and the score of the ensemble."""
