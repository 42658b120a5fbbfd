"""A process beside each rank that reports which rank failed first and ends every process of the run."""
