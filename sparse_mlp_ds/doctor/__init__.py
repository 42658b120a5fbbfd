"""What is wrong with the hosts of a run, found before anybody starts it. Each looks at itself; one host compares."""
