"""From a job file to a list of run requests: schema, matrix, folds, steps, remarks. Starts nothing."""
