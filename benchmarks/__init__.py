"""What serving costs, and what it bears: measured on a real server, and written to results/."""
