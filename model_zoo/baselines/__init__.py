"""Models from before deep learning, the yardsticks of all others: one method a file."""
