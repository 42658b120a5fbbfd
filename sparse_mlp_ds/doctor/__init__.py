"""Finds what is wrong with the hosts of a run before it starts: each host examines itself, and one host compares."""
