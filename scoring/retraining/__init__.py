"""From a log to the next champion: retrain, its gate, search, and what is watched meanwhile."""
