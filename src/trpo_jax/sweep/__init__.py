"""Many trainings: a plan, programs that each train many runs, a folder of results, and reports."""
