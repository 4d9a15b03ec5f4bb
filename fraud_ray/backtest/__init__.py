"""Several final folds, everything chosen once on selection folds before all of them, reference models beside."""
