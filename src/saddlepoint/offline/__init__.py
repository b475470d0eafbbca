"""Learning from stored episodes of several tasks: the data set, where it comes from, and pretraining on it."""
