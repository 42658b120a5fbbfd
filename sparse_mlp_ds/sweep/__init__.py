"""Many runs of one recipe under other settings, and one table of what came out."""
